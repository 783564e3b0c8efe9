"""Computes the frontends that a Service claims, and their backends, from the Service and its EndpointSlices.

The rules are those of the Service and EndpointSlice API (KEP-752, KEP-1672 for terminating endpoints), as kube-proxy
applies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from nodenet.abi import AddressPort
from nodenet.compile.state import ServicePortName
from nodenet.model import EndpointSlice, IPAddress, ObjectRef, Protocol, Service, ServicePort, SliceEndpoint

# A Service with this label is served by another proxy (KEP-2447).
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"

_READY = 0
_TERMINATING = 1

PortKey = tuple[str, Protocol]
# (first address, port) -> the best rank that any slice gives it.
Candidates = dict[tuple[IPAddress, int], int]


class Frontend(NamedTuple):
    """An address and port of a Service. `backends` is sorted and has no duplicates.

    `draining` (only UDP): terminating endpoints that still serve, while others are ready. They get no new flows but
    keep their existing ones.
    """

    address: AddressPort
    name: ServicePortName
    backends: tuple[AddressPort, ...]
    draining: tuple[AddressPort, ...] = ()


def has_frontends(service: Service) -> bool:
    """Headless and ExternalName Services have no ClusterIP; labelled ones are served by another proxy."""
    return bool(service.cluster_ips) and PROXY_NAME_LABEL not in service.labels


def frontends_of(service: Service, slices: Iterable[EndpointSlice]) -> dict[AddressPort, Frontend]:
    """The frontends of one Service, in the order of its ports and addresses. `slices`: its EndpointSlices, in any
    order."""
    found: dict[AddressPort, Frontend] = {}
    if not has_frontends(service):
        return found
    ports = _candidates(slices, service.publish_not_ready_addresses)
    for port in service.ports:
        candidates = ports.get((port.name, port.protocol), {})
        for address in service.cluster_ips:
            frontend = _frontend(service.ref, port, address, candidates)
            # The API rejects two ports with the same number and protocol. If it happens, the first one is used.
            found.setdefault(frontend.address, frontend)
    return found


def _frontend(ref: ObjectRef, port: ServicePort, address: IPAddress, candidates: Candidates) -> Frontend:
    """The backends of a frontend are the ready endpoints of its IP family. If there are none, terminating endpoints
    that still serve are used."""
    version = address.version
    family = [(target, rank) for target, rank in candidates.items() if target[0].version == version]
    best = min(map(itemgetter(1), family), default=_READY)
    targets = sorted(target for target, rank in family if rank == best)
    # kube-proxy keeps UDP flows to endpoints that still serve, even if they are not ready.
    draining = sorted(target for target, rank in family if rank != best) if port.protocol == Protocol.UDP else ()
    return Frontend(
        AddressPort(address, port.port, port.protocol),
        ServicePortName(ref, port.name, port.port, port.protocol),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in targets),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in draining),
    )


def _candidates(slices: Iterable[EndpointSlice], all_ready: bool) -> dict[PortKey, Candidates]:
    """Merge the slices of one Service. An endpoint may be in two slices while it moves between them: its better rank
    counts."""
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
    """The rank of an endpoint; None if it must not be used. spec.publishNotReadyAddresses: "disregard any indications
    of ready/not-ready"."""
    if not endpoint.addresses:
        return None
    if endpoint.ready or all_ready:
        return _READY
    return _TERMINATING if endpoint.serving and endpoint.terminating else None
