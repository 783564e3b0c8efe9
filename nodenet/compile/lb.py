"""Services and EndpointSlices -> frontends, backends and revnat.

Rules: the Service and EndpointSlice API (KEP-752, KEP-1672 for terminating endpoints) as kube-proxy reads it.

Slots. A frontend's slots keep what they held: the assignment of the last compilation (at a restart: the kernel's) is
the start, a hole is filled by a new backend or else by the last slot's. So one backend that goes costs at most one slot
write, one deletion and the master entry, whatever the number of backends; a sorted order would shift all that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

from nodenet.abi import U32, AddressPort, FrontendEntry, FrontendKey, Record
from nodenet.compile.ids import Ids
from nodenet.compile.state import ServicePortName, Table
from nodenet.model import EndpointSlice, IPAddress, ObjectRef, Protocol, Service, ServicePort, SliceEndpoint

# A Service with this label belongs to another proxy (KEP-2447).
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
# nn_frontend_entry.count and nn_frontend_key.slot are 16 bits.
MAX_BACKENDS = 0xFFFF

_READY = 0
_TERMINATING = 1

Slots = Mapping[AddressPort, tuple[int, ...]]
PortKey = tuple[str, Protocol]
# (first address, port) -> the best condition that any slice tells of it.
Candidates = dict[tuple[IPAddress, int], int]


@dataclass(frozen=True, slots=True)
class ServiceTables:
    """The three maps of the Services, the names of their numbers, and what could not be followed.

    `slots` tells which backend_ids sit in slots 1, 2, ... of each frontend: the start of the next compilation.
    """

    frontends: Table
    backends: Table
    revnat: Table
    names: Mapping[int, ServicePortName]
    slots: Slots
    warnings: tuple[str, ...]


class Frontend(NamedTuple):
    """One address and port that clients use. `backends` is sorted and without duplicates."""

    address: AddressPort
    name: ServicePortName
    backends: tuple[AddressPort, ...]


def restore(ids: Ids, tables: Mapping[str, Table]) -> Slots:
    """Take over the numbers of pinned nn_revnat and nn_backend; returns the slots that nn_frontend holds."""
    ids.services.restore(_standing_for(tables.get("nn_revnat", {})))
    ids.backends.restore(_standing_for(tables.get("nn_backend", {})))
    return _slots_of(tables.get("nn_frontend", {}))


def compile_services(
    services: Mapping[ObjectRef, Service],
    slices: Mapping[ObjectRef, EndpointSlice],
    ids: Ids,
    previous: Slots = MappingProxyType({}),
) -> ServiceTables:
    """Every frontend of the cluster's Services. `previous`: the slots of the last compilation, or `restore`'s."""
    warnings: list[str] = []
    frontends = _unique(_frontends(services, slices), warnings)
    service_ids = {address: ids.services.number(address) for address in frontends}
    wanted = dict.fromkeys(backend for frontend in frontends.values() for backend in frontend.backends)
    backend_ids = {backend: ids.backends.number(backend) for backend in wanted}
    ids.services.keep(service_ids.keys())
    ids.backends.keep(backend_ids.keys())
    entries: dict[Record, Record] = {}
    slots: dict[AddressPort, tuple[int, ...]] = {}
    for address, frontend in frontends.items():
        chosen = [backend_ids[backend] for backend in frontend.backends[:MAX_BACKENDS]]
        if len(chosen) < len(frontend.backends):
            warnings.append(
                f"Service {frontend.name.ref}: port {address.port}: it has {len(frontend.backends)} backends, "
                f"the first {MAX_BACKENDS} by address are used"
            )
        slots[address] = arrange(chosen, previous.get(address, ()))
        entries.update(_entries(address, service_ids[address], slots[address]))
    return ServiceTables(
        frontends=entries,
        backends={U32(number): backend for backend, number in backend_ids.items()},
        revnat={U32(number): address for address, number in service_ids.items()},
        names={service_ids[address]: frontend.name for address, frontend in frontends.items()},
        slots=slots,
        warnings=tuple(warnings),
    )


def arrange(wanted: Sequence[int], previous: Sequence[int]) -> tuple[int, ...]:
    """Put `wanted` (no duplicates) into slots so that few of `previous` change: see the module's text."""
    if len(wanted) == len(previous) and set(wanted) == set(previous):
        return tuple(previous)
    missing = dict.fromkeys(wanted)
    slots: list[int | None] = []
    for backend in previous:
        # A crash in the middle of a change may have left one backend in two slots: the second one is a hole.
        slots.append(backend if backend in missing else None)
        missing.pop(backend, None)
    waiting = iter(missing)
    slots = [next(waiting, None) if slot is None else slot for slot in slots]
    slots.extend(waiting)
    hole = 0
    while hole < len(slots):
        if slots[-1] is None:
            slots.pop()
        elif slots[hole] is None:
            slots[hole] = slots.pop()
        else:
            hole += 1
    return tuple(slot for slot in slots if slot is not None)


def has_frontends(service: Service) -> bool:
    """Headless and ExternalName Services have no ClusterIP; labelled ones are another proxy's."""
    return bool(service.cluster_ips) and PROXY_NAME_LABEL not in service.labels


def _frontends(services: Mapping[ObjectRef, Service], slices: Mapping[ObjectRef, EndpointSlice]) -> Iterator[Frontend]:
    by_service: dict[ObjectRef, list[EndpointSlice]] = {}
    for slice_ in slices.values():
        by_service.setdefault(slice_.service, []).append(slice_)
    for ref in sorted(services):
        service = services[ref]
        if not has_frontends(service):
            continue
        ports = _candidates(by_service.get(ref, ()), service.publish_not_ready_addresses)
        for port in service.ports:
            candidates = ports.get((port.name, port.protocol), {})
            for address in service.cluster_ips:
                yield _frontend(ref, port, address, candidates)


def _frontend(ref: ObjectRef, port: ServicePort, address: IPAddress, candidates: Candidates) -> Frontend:
    """A frontend's backends are the ready ones of its family, or those that finish their work when none is ready."""
    version = address.version
    family = [(target, rank) for target, rank in candidates.items() if target[0].version == version]
    best = min(map(itemgetter(1), family), default=_READY)
    targets = sorted(target for target, rank in family if rank == best)
    return Frontend(
        AddressPort(address, port.port, port.protocol),
        ServicePortName(ref, port.name, port.port, port.protocol),
        tuple(AddressPort(addr, number, port.protocol) for addr, number in targets),
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


def _unique(found: Iterable[Frontend], warnings: list[str]) -> dict[AddressPort, Frontend]:
    """The API server gives an address to one Service. Should two claim it, the first by name has it."""
    unique: dict[AddressPort, Frontend] = {}
    for frontend in found:
        holder = unique.setdefault(frontend.address, frontend)
        if holder is not frontend and holder.name.ref != frontend.name.ref:
            warnings.append(
                f"Service {frontend.name.ref}: spec.clusterIPs: {frontend.address.addr} port {frontend.address.port} "
                f"is already served for Service {holder.name.ref}"
            )
    return unique


def _entries(address: AddressPort, service_id: int, slots: Sequence[int]) -> Iterator[tuple[Record, Record]]:
    addr, port, protocol = address
    # Shared by all ports of the address; names no Service port, so it carries no number.
    yield FrontendKey(addr, 0, 0, 0), FrontendEntry(0, 0, 0)
    yield FrontendKey(addr, port, protocol, 0), FrontendEntry(0, service_id, len(slots))
    for slot, backend_id in enumerate(slots, 1):
        yield FrontendKey(addr, port, protocol, slot), FrontendEntry(backend_id, service_id, 0)


def _standing_for(table: Table) -> Iterator[tuple[AddressPort, int]]:
    """What each number of nn_backend or nn_revnat stands for; sorted, so that a double one ends alike everywhere."""
    return ((table[key], key.value) for key in sorted(table))


def _slots_of(table: Table) -> dict[AddressPort, tuple[int, ...]]:
    found: dict[AddressPort, tuple[int, ...]] = {}
    for key, value in table.items():
        if key.slot or not key.port:
            continue
        address = AddressPort(*key[:3])
        entries = (table.get(FrontendKey(*address, slot)) for slot in range(1, value.backends + 1))
        # A missing slot becomes 0, which is no backend's number: a hole.
        found[address] = tuple(entry.backend_id if entry else 0 for entry in entries)
    return found
