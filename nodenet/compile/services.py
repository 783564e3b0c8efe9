"""One Service and its EndpointSlices -> the frontends that it claims and the backends behind each.

Rules: the Service and EndpointSlice API (KEP-752, KEP-1672 for terminating endpoints) as kube-proxy reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from nodenet.abi import AddressPort
from nodenet.compile.state import ServicePortName
from nodenet.model import EndpointSlice, IPAddress, ObjectRef, Protocol, Service, ServicePort, SliceEndpoint

# A Service with this label belongs to another proxy (KEP-2447).
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"

_READY = 0
_TERMINATING = 1

PortKey = tuple[str, Protocol]
# (first address, port) -> the best condition that any slice tells of it.
Candidates = dict[tuple[IPAddress, int], int]


class Frontend(NamedTuple):
    """One address and port that clients use. `backends` is sorted and without duplicates.

    `draining`, UDP only: endpoints that terminate but still serve, while others are ready. They get no new flows, and
    keep those that they have.
    """

    address: AddressPort
    name: ServicePortName
    backends: tuple[AddressPort, ...]
    draining: tuple[AddressPort, ...] = ()


def has_frontends(service: Service) -> bool:
    """Headless and ExternalName Services have no ClusterIP; labelled ones are another proxy's."""
    return bool(service.cluster_ips) and PROXY_NAME_LABEL not in service.labels


def frontends_of(service: Service, slices: Iterable[EndpointSlice]) -> dict[AddressPort, Frontend]:
    """What one Service claims, in the order of its ports and addresses. `slices`: those that name it, in any order."""
    found: dict[AddressPort, Frontend] = {}
    if not has_frontends(service):
        return found
    ports = _candidates(slices, service.publish_not_ready_addresses)
    for port in service.ports:
        candidates = ports.get((port.name, port.protocol), {})
        for address in service.cluster_ips:
            frontend = _frontend(service.ref, port, address, candidates)
            found.setdefault(frontend.address, frontend)
    return found


def _frontend(ref: ObjectRef, port: ServicePort, address: IPAddress, candidates: Candidates) -> Frontend:
    """A frontend's backends are the ready ones of its family, or those that finish their work when none is ready."""
    version = address.version
    family = [(target, rank) for target, rank in candidates.items() if target[0].version == version]
    best = min(map(itemgetter(1), family), default=_READY)
    targets = sorted(target for target, rank in family if rank == best)
    # kube-proxy keeps UDP flows of endpoints that serve, ready or not.
    draining = sorted(target for target, rank in family if rank != best) if port.protocol == Protocol.UDP else ()
    return Frontend(
        AddressPort(address, port.port, port.protocol),
        ServicePortName(ref, port.name, port.port, port.protocol),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in targets),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in draining),
    )


def _candidates(slices: Iterable[EndpointSlice], all_ready: bool) -> dict[PortKey, Candidates]:
    """All slices of one Service merged. An endpoint that two slices show (it moves) counts with its better state."""
    ports: dict[PortKey, Candidates] = {}
    for slice_ in slices:
        for endpoint in slice_.endpoints:
            rank = _rank(endpoint, all_ready)
            if rank is None:
                continue
            # The API gives no meaning to further addresses.
            address = endpoint.addresses[0]
            for port in slice_.ports:
                found = ports.setdefault((port.name, port.protocol), {})
                target = (address, port.port)
                found[target] = min(found.get(target, rank), rank)
    return ports


def _rank(endpoint: SliceEndpoint, all_ready: bool) -> int | None:
    """None: must not be used. spec.publishNotReadyAddresses: "disregard any indications of ready/not-ready"."""
    if not endpoint.addresses:
        return None
    if endpoint.ready or all_ready:
        return _READY
    return _TERMINATING if endpoint.serving and endpoint.terminating else None
