"""Computes the frontends that a Service claims, and their backends, from the Service and its EndpointSlices.

The rules are those of the Service and EndpointSlice API, as kube-proxy applies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from ipaddress import ip_network
from typing import NamedTuple

from nodenet.abi import AddressPort
from nodenet.compile.backends import Candidates, Here, candidates_of, choose
from nodenet.compile.state import ServicePortName
from nodenet.model import (
    NO_SOURCE,
    UNSERVED_LABELS,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    ObjectRef,
    Protocol,
    Service,
    ServicePort,
)

# The programs translate these.
SERVED_PROTOCOLS = (Protocol.TCP, Protocol.UDP)
_NO_CANDIDATES: Candidates = {}
# The most entries of nn_source_range for one Service: one for each range of each of its ports and addresses. All
# Services share the map, and sources in ranges without room are refused.
MAX_SOURCE_RANGES = 4096
_UNSERVED = frozenset(UNSERVED_LABELS)


class FrontendKind(IntEnum):
    """What gave a Service or a pod an address. If two of them claim one, the first kind owns it."""

    CLUSTER_IP = 0
    NODE_PORT = 1
    LOAD_BALANCER = 2
    HOST_PORT = 3
    EXTERNAL_IP = 4

    @property
    def field(self) -> str:
        """The field of the API object."""
        return _FIELDS[self]


_FIELDS = {
    FrontendKind.CLUSTER_IP: "spec.clusterIPs",
    FrontendKind.NODE_PORT: "spec.ports[].nodePort",
    FrontendKind.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendKind.HOST_PORT: "spec.containers[].ports[].hostPort",
    FrontendKind.EXTERNAL_IP: "spec.externalIPs",
}


class PodOwner(NamedTuple):
    """The owner of hostPorts. It never equals the ObjectRef of a Service."""

    namespace: str
    name: str
    kind: str = "Pod"

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.ref}"


Owner = ObjectRef | PodOwner


class Outside(NamedTuple):
    """What traffic from outside meets, if it is not the same as for traffic from this node."""

    backends: tuple[AddressPort, ...]
    only_elsewhere: bool


class Sources(NamedTuple):
    """The sources that may use a frontend. `node`: also the node itself."""

    ranges: tuple[IPNetwork, ...]
    node: bool


class Frontend(NamedTuple):
    """An address and port of a Service, as traffic from this node meets it. `backends` is sorted and has no duplicates.

    `draining` (only UDP): other endpoints that serve. They get no new flows but keep their existing ones.
    `only_elsewhere`: there is no backend, because the traffic policy is Local and only other nodes have endpoints.
    `affinity_seconds`: the timeout of session affinity; 0: none. `keep_source`: traffic from outside keeps its source.
    `outside`: None: the same backends serve it. All of them are in `backends` or `draining` of a UDP frontend.
    `sources`: None: every source may use it. `node_only`: only processes of the node itself use it.
    """

    address: AddressPort
    name: ServicePortName
    backends: tuple[AddressPort, ...]
    draining: tuple[AddressPort, ...] = ()
    kind: FrontendKind = FrontendKind.CLUSTER_IP
    only_elsewhere: bool = False
    affinity_seconds: int = 0
    keep_source: bool = False
    outside: Outside | None = None
    sources: Sources | None = None
    node_only: bool = False


def has_frontends(service: Service) -> bool:
    """Headless and ExternalName Services have no ClusterIP; labelled ones are not ours."""
    return bool(service.cluster_ips) and _UNSERVED.isdisjoint(service.labels)


def frontends_of(service: Service, slices: Iterable[EndpointSlice], here: Here) -> dict[AddressPort, Frontend]:
    """The frontends of one Service, in the order of its ports and addresses. `slices`: its EndpointSlices, in any
    order."""
    found: dict[AddressPort, Frontend] = {}
    if not has_frontends(service):
        return found
    ports = candidates_of(slices, service.publish_not_ready_addresses)
    for port in service.ports:
        candidates = ports.get((port.name, port.protocol), _NO_CANDIDATES)
        name = ServicePortName(service.ref, port.name, port.port, port.protocol)
        chosen: dict[tuple[int, bool], _Chosen] = {}
        for kind, address, number in _places(service, port, here):
            # externalTrafficPolicy Local is for traffic from outside: a pod, and the node itself, may use any backend.
            is_cluster_ip = kind is FrontendKind.CLUSTER_IP
            known = address.version, service.internal_local and is_cluster_ip
            if known not in chosen:
                chosen[known] = _chosen(candidates, port.protocol, here, *known)
            at = AddressPort(address, number, port.protocol)
            backends, draining, only_elsewhere = chosen[known]
            frontend = Frontend(at, name, backends, draining, kind, only_elsewhere, service.affinity_seconds)
            if service.external_local and not is_cluster_ip:
                known = address.version, True
                if known not in chosen:
                    chosen[known] = _chosen(candidates, port.protocol, here, *known)
                frontend = _with_outside(frontend, chosen[known])
            if service.source_ranges and kind is FrontendKind.LOAD_BALANCER:
                frontend = frontend._replace(sources=_sources(service, address, here))
            # The API rejects two ports with the same number and protocol. If it happens, the first one is used.
            found.setdefault(at, frontend)
    return found


def _with_outside(frontend: Frontend, outside: _Chosen) -> Frontend:
    """With externalTrafficPolicy Local: traffic from outside keeps its source and gets only backends of this node."""
    backends, _, only_elsewhere = outside
    if (backends, only_elsewhere) == (frontend.backends, frontend.only_elsewhere):
        return frontend._replace(keep_source=True)
    return frontend._replace(keep_source=True, outside=Outside(backends, only_elsewhere))


_Chosen = tuple[tuple[AddressPort, ...], tuple[AddressPort, ...], bool]


def _places(service: Service, port: ServicePort, here: Here) -> Iterator[tuple[FrontendKind, IPAddress, int]]:
    """Kind, address and port number of each frontend of a Service port."""
    for address in service.cluster_ips:
        yield FrontendKind.CLUSTER_IP, address, port.port
    # A Service has the IP families of its cluster IPs.
    versions = {address.version for address in service.cluster_ips}
    for address in here.node_ports if port.node_port else ():
        if address.version in versions:
            yield FrontendKind.NODE_PORT, address, port.node_port
    for address in service.load_balancer_ips:
        if address.version in versions:
            yield FrontendKind.LOAD_BALANCER, address, port.port
    for address in service.external_ips:
        if address.version in versions:
            yield FrontendKind.EXTERNAL_IP, address, port.port


def kind_of(service: Service, address: IPAddress) -> FrontendKind:
    """What gave the Service one of its addresses."""
    if address in service.cluster_ips:
        return FrontendKind.CLUSTER_IP
    if address in service.load_balancer_ips:
        return FrontendKind.LOAD_BALANCER
    return FrontendKind.EXTERNAL_IP if address in service.external_ips else FrontendKind.NODE_PORT


def _sources(service: Service, address: IPAddress, here: Here) -> Sources | None:
    """loadBalancerSourceRanges, for one of the load balancer's addresses. A family without ranges has no
    restriction."""
    ranges = _ranges(service, address.version)
    if not ranges:
        return None
    used = set(sorted(ranges.difference(NO_SOURCE), key=_widest)[: _room_for_ranges(service)])
    node = any(own in network for network in used for own in here.addresses)
    if node:
        # A load balancer's address is often one of the node's own too. Then the node calls it from that address.
        used.add(ip_network(address))
    return Sources(tuple(sorted(used)), node)


def _ranges(service: Service, version: int) -> set[IPNetwork]:
    """The ranges of a family; none if every source of it is allowed."""
    found = {network for network in service.source_ranges or () if network.version == version}
    return set() if any(not network.prefixlen for network in found) else found


def _room_for_ranges(service: Service) -> int:
    """The number of ranges of one family that each frontend gets."""
    return MAX_SOURCE_RANGES // max(len(service.ports) * len(service.load_balancer_ips), 1)


def _widest(network: IPNetwork) -> tuple[int, IPNetwork]:
    return network.prefixlen, network


def _chosen(candidates: Candidates, protocol: Protocol, here: Here, version: int, local: bool) -> _Chosen:
    chosen = choose(candidates, version, here, local=local)
    # kube-proxy keeps UDP flows to endpoints that still serve, even if traffic policy or topology exclude them.
    spare = chosen.spare if protocol == Protocol.UDP else ()
    return (
        tuple(AddressPort(addr, number, protocol) for addr, number in chosen.used),
        tuple(AddressPort(addr, number, protocol) for addr, number in spare),
        chosen.only_elsewhere,
    )


def not_served(service: Service) -> Iterator[str]:
    """The fields of a Service that have no effect here, one sentence each, for warnings (docs/services.md)."""
    for port in service.ports if has_frontends(service) else ():
        if port.protocol not in SERVED_PROTOCOLS:
            yield f"spec.ports: port {port.port}: {port.protocol.name} is not served"
    room = _room_for_ranges(service)
    for version in {address.version for address in service.load_balancer_ips}:
        count = len(_ranges(service, version).difference(NO_SOURCE))
        if count > room and has_frontends(service):
            yield (
                f"spec.loadBalancerSourceRanges: {count} IPv{version} ranges for each of {len(service.ports)} ports "
                f"and {len(service.load_balancer_ips)} addresses, expected at most {MAX_SOURCE_RANGES} in all: "
                f"the {room} widest are used, and sources in the others are refused"
            )
