"""Computes the frontends that a Service claims, and their backends, from the Service and its EndpointSlices.

The rules are those of the Service and EndpointSlice API, as kube-proxy applies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nodenet.abi import AddressPort
from nodenet.compile.backends import Candidates, Here, candidates_of, choose
from nodenet.compile.state import ServicePortName
from nodenet.model import UNSERVED_LABELS, EndpointSlice, IPAddress, Protocol, Service, ServicePort

_NO_CANDIDATES: Candidates = {}


class Frontend(NamedTuple):
    """An address and port of a Service. `backends` is sorted and has no duplicates.

    `draining` (only UDP): other endpoints that serve. They get no new flows but keep their existing ones.
    """

    address: AddressPort
    name: ServicePortName
    backends: tuple[AddressPort, ...]
    draining: tuple[AddressPort, ...] = ()


def has_frontends(service: Service) -> bool:
    """Headless and ExternalName Services have no ClusterIP; labelled ones are not ours."""
    return bool(service.cluster_ips) and not any(label in service.labels for label in UNSERVED_LABELS)


def frontends_of(service: Service, slices: Iterable[EndpointSlice], here: Here) -> dict[AddressPort, Frontend]:
    """The frontends of one Service, in the order of its ports and addresses. `slices`: its EndpointSlices, in any
    order."""
    found: dict[AddressPort, Frontend] = {}
    if not has_frontends(service):
        return found
    ports = candidates_of(slices, service.publish_not_ready_addresses)
    for port in service.ports:
        candidates = ports.get((port.name, port.protocol), _NO_CANDIDATES)
        for address in service.cluster_ips:
            frontend = _frontend(service, port, address, candidates, here)
            # The API rejects two ports with the same number and protocol. If it happens, the first one is used.
            found.setdefault(frontend.address, frontend)
    return found


def _frontend(service: Service, port: ServicePort, address: IPAddress, candidates: Candidates, here: Here) -> Frontend:
    chosen = choose(candidates, address.version, here, local=service.internal_local)
    # kube-proxy keeps UDP flows to endpoints that still serve, even if traffic policy or topology exclude them.
    spare = chosen.spare if port.protocol == Protocol.UDP else ()
    return Frontend(
        AddressPort(address, port.port, port.protocol),
        ServicePortName(service.ref, port.name, port.port, port.protocol),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in chosen.used),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in spare),
    )


def not_served(service: Service) -> Iterator[str]:
    """The fields of a Service that have no effect here, one sentence each, for warnings (docs/services.md)."""
    if not has_frontends(service):
        return
    if any(port.node_port for port in service.ports):
        yield "spec.ports[].nodePort: not served"
    if service.external_ips:
        yield "spec.externalIPs: not served"
    if service.load_balancer_ips:
        yield "status.loadBalancer.ingress: its addresses are not served"
    if service.affinity_seconds:
        yield "spec.sessionAffinity: not served, each connection may get another backend"
