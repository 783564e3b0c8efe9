"""Computes the frontends of the hostPorts of this node's pods: spec.containers[].ports[].hostPort.

A pod has its hostPorts from its CNI ADD to its CNI DEL, whether it is ready or not, as with the reference's `portmap`.
A pod that has ended loses them at once: the scheduler may already have placed another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from nodenet.abi import AddressPort
from nodenet.compile.endpoints import pod_of
from nodenet.compile.services import SERVED_PROTOCOLS, Frontend, FrontendKind, PodOwner
from nodenet.compile.state import LocalNode, ServicePortName, ServiceWarning
from nodenet.endpoint import AttachmentKey
from nodenet.evolved import changed_keys
from nodenet.model import Endpoint, HostPort, IPAddress, ObjectRef, Pod

Endpoints = Mapping[AttachmentKey, Endpoint]
Pods = Mapping[ObjectRef, Pod]


@dataclass(frozen=True, slots=True)
class HostPorts:
    """The frontends that each pod claims, and what is not served."""

    claims: Mapping[PodOwner, Mapping[AddressPort, Frontend]] = field(default_factory=dict)
    warnings: tuple[ServiceWarning, ...] = ()


NO_HOST_PORTS = HostPorts()
# Not among the node's addresses, which identify it to others.
_LOOPBACK = frozenset((ip_address("127.0.0.1"), ip_address("::1")))


class HostPortCompiler:
    """Returns the same object as before if nothing changed. The pods of other nodes change all the time: they are only
    compared with the names of this node's pods."""

    def __init__(self) -> None:
        self._last = NO_HOST_PORTS
        self._inputs: tuple[Endpoints, Pods, LocalNode] | None = None
        self._own: frozenset[ObjectRef] = frozenset()

    def compile(self, endpoints: Endpoints, pods: Pods, local: LocalNode) -> HostPorts:
        if not self._is_known(endpoints, pods, local):
            found = _host_ports(endpoints, pods, local) if local.host_ports else NO_HOST_PORTS
            if found != self._last:
                self._last = found
            self._own = frozenset(endpoint.pod for endpoint in endpoints.values())
        self._inputs = endpoints, pods, local
        return self._last

    def _is_known(self, endpoints: Endpoints, pods: Pods, local: LocalNode) -> bool:
        if self._inputs is None or endpoints is not self._inputs[0] or local != self._inputs[2]:
            return False
        return self._own.isdisjoint(changed_keys(self._inputs[1], pods))


def _host_ports(endpoints: Endpoints, pods: Pods, local: LocalNode) -> HostPorts:
    claims: dict[PodOwner, dict[AddressPort, Frontend]] = {}
    warnings: dict[ServiceWarning, None] = {}
    own = sorted(filter(_is_served, local.addresses | _LOOPBACK), key=lambda one: (one.version, int(one)))
    # Sorted, so that of two endpoints of one pod always the same one is used.
    for _, endpoint in sorted(endpoints.items()):
        pod = pod_of(endpoint, pods)
        if pod is None or pod.finished or not pod.host_ports:
            continue
        for port in pod.host_ports:
            problem = _problem(port, own, local.services)
            if problem:
                text = f"hostPort {port.port}: {problem}"
                warnings[ServiceWarning(pod.ref, text, "Pod")] = None
                continue
            mine = claims.setdefault(PodOwner(*pod.ref), {})
            for frontend in _frontends(pod, port, endpoint.ips, own):
                mine.setdefault(frontend.address, frontend)
    return HostPorts(claims, tuple(sorted(warnings)))


def _problem(port: HostPort, own: Iterable[IPAddress], services: bool) -> str:
    """Why a hostPort is not served."""
    if port.protocol not in SERVED_PROTOCOLS:
        return f"{port.protocol.name} is not served"
    if not services:
        return "not served, because this agent serves no Services (services) and no portmap is chained (host_ports)"
    if port.address is None or port.address.is_unspecified or port.address.is_loopback or port.address in own:
        return ""
    return f"hostIP {port.address} is not an address of this node"


def _is_served(address: IPAddress) -> bool:
    return not address.is_link_local and not address.is_multicast


def _frontends(pod: Pod, port: HostPort, ips: Iterable[IPAddress], own: Iterable[IPAddress]) -> Iterator[Frontend]:
    name = ServicePortName(pod.ref, "", port.port, port.protocol)
    targets = {address.version: address for address in reversed([*ips])}
    for address in _addresses(port, own):
        target = targets.get(address.version)
        if target is not None:
            yield Frontend(
                AddressPort(address, port.port, port.protocol),
                name,
                (AddressPort(target, port.target, port.protocol),),
                kind=FrontendKind.HOST_PORT,
                keep_source=True,
                # The loopback of a pod is not the node's.
                node_only=address.is_loopback,
            )


def _addresses(port: HostPort, own: Iterable[IPAddress]) -> Iterable[IPAddress]:
    """The addresses of the node on which a hostPort is served. 0.0.0.0 and :: stand for those of their family."""
    if port.address is None:
        return own
    if port.address.is_unspecified:
        return [address for address in own if address.version == port.address.version]
    return [port.address]
