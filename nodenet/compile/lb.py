"""Compiles the Services of the cluster into frontends, backends, members and revnat.

The frontends that each Service claims are remembered. After a change only the affected Services are compiled again;
then the owner of each claimed address is determined, and the affected tables get a new version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from nodenet.abi import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    U32,
    AddressFlag,
    AddressKey,
    AddressPort,
    FrontendKey,
    FrontendScope,
    MemberKey,
)
from nodenet.compile.backends import Here
from nodenet.compile.claims import Claims
from nodenet.compile.entries import change_slots, change_source_ranges, external_master, internal_master
from nodenet.compile.health_checks import health_check
from nodenet.compile.host_ports import NO_HOST_PORTS, HostPorts
from nodenet.compile.ids import Ids
from nodenet.compile.services import Frontend, FrontendKind, frontends_of, not_served
from nodenet.compile.slots import NO_SLOTS, Slots, arrange
from nodenet.compile.state import HealthCheck, ServicePortName, ServiceWarning, Table
from nodenet.evolved import Evolved, changed_keys, changes_between, evolve
from nodenet.model import EndpointSlice, IPAddress, ObjectRef, Protocol, Service

# nn_frontend_entry.count and nn_frontend_key.slot are 16 bits.
MAX_BACKENDS = 0xFFFF

Services = Mapping[ObjectRef, Service]
Slices = Mapping[ObjectRef, EndpointSlice]
T = TypeVar("T")
_NOWHERE = Here()


class ServiceTables(NamedTuple):
    """The maps of the Services, the names of their numbers, warnings, and the Services with a healthCheckNodePort.

    The next compilation starts from `slots`.
    """

    frontends: Table
    addresses: Table
    backends: Table
    members: Table
    revnat: Table
    source_ranges: Table
    names: Mapping[int, ServicePortName]
    host_ports: Mapping[int, ServicePortName]
    slots: Slots
    warnings: tuple[ServiceWarning, ...]
    health_checks: Mapping[ObjectRef, HealthCheck]


class ServiceCompiler:
    """Compiles the Services of one Snapshot after the other. `previous`: the slots to start from, as returned by
    `slots.restore`.

    A table that did not change is the same object as in the previous result, else it is evolved from that. In the first
    result entries are ordered by Service name; later additions come last.
    """

    def __init__(self, ids: Ids, previous: Slots = NO_SLOTS) -> None:
        self._ids = ids
        self._slots = previous
        self._known: _Known | None = None

    def compile(
        self, services: Services, slices: Slices, here: Here = _NOWHERE, hosted: HostPorts = NO_HOST_PORTS
    ) -> ServiceTables:
        """Raises OverflowError if a space of numbers is full; the next compilation then starts from an empty state."""
        known, self._known = self._known or _Known(), None
        changed = services is not known.services or slices is not known.slices or here != known.here
        if changed or hosted is not known.hosted:
            self._update(known, services, slices, here, hosted)
        self._known, self._slots = known, known.tables.slots
        return known.tables

    def _update(self, known: _Known, services: Services, slices: Slices, here: Here, hosted: HostPorts) -> None:
        first = not known.services and not known.slices and not known.hosted.claims
        run = _Run(known, self._ids, self._slots)
        for address in chain(known.claim(services, slices, here), known.claim_host_ports(hosted)):
            run.set_frontend(address, known.claims.winner(address))
        run.finish()
        if first:
            self._retire_unused(known)

    def _retire_unused(self, known: _Known) -> None:
        """Retire numbers that were restored or left by a failed run and are not used. All used keys have a number
        already."""
        if len(self._ids.services) > len(known.held):
            self._ids.services.keep(known.held)
        if len(self._ids.backends) > len(known.tables.backends):
            self._ids.backends.keep(set(known.tables.backends.values()))


_EMPTY = ServiceTables(
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Evolved({}),
    Slots(Evolved({}), Evolved({})),
    (),
    Evolved({}),
)


@dataclass(slots=True)
class _Known:
    """The state of the last compilation. The next one modifies it; if that fails, it is inconsistent and is
    discarded."""

    services: Services = field(default_factory=dict)
    slices: Slices = field(default_factory=dict)
    here: Here = _NOWHERE
    hosted: HostPorts = NO_HOST_PORTS
    by_service: dict[ObjectRef, dict[ObjectRef, EndpointSlice]] = field(default_factory=dict)
    claims: Claims = field(default_factory=Claims)
    held: dict[AddressPort, Frontend] = field(default_factory=dict)
    truncated: set[AddressPort] = field(default_factory=set)
    # Fields without effect.
    unserved: dict[ObjectRef, tuple[str, ...]] = field(default_factory=dict)
    # The number of frontends on each address and how many of them are ClusterIPs, and the number of uses of each
    # backend_id.
    ports: dict[IPAddress, tuple[int, int]] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    # Changes of this compilation.
    health_checks: dict[ObjectRef, HealthCheck | None] = field(default_factory=dict)
    tables: ServiceTables = _EMPTY

    def claim(self, services: Services, slices: Slices, here: Here) -> Iterable[AddressPort]:
        """Compile the Services that changed. Returns the addresses whose frontend may have changed."""
        concerned = {ref for ref, _, _ in _changed(self.services, services)}
        for ref, old, new in _changed(self.slices, slices):
            if old is not None:
                self.by_service[old.service].pop(ref)
                concerned.add(old.service)
            if new is not None:
                self.by_service.setdefault(new.service, {})[ref] = new
                concerned.add(new.service)
        if here != self.here:
            concerned |= services.keys()
        self.services, self.slices, self.here = services, slices, here
        touched: dict[AddressPort, None] = {}
        for name in sorted(concerned):
            touched.update(dict.fromkeys(self._claim_of(name)))
        return touched

    def _claim_of(self, ref: ObjectRef) -> Iterable[AddressPort]:
        service, slices = self.services.get(ref), self.by_service.get(ref, {})
        if not slices:
            self.by_service.pop(ref, None)
        new = frontends_of(service, slices.values(), self.here) if service is not None else {}
        unserved = tuple(not_served(service)) if service is not None else ()
        if unserved:
            self.unserved[ref] = unserved
        elif self.unserved:
            self.unserved.pop(ref, None)
        check = health_check(service, slices.values(), self.here.node) if service is not None else None
        if check is not None or self.tables.health_checks:
            self.health_checks[ref] = check
        return self.claims.replace(ref, new)

    def claim_host_ports(self, hosted: HostPorts) -> Iterable[AddressPort]:
        """As `claim`."""
        changed = changed_keys(self.hosted.claims, hosted.claims)
        self.hosted = hosted
        return [address for owner in changed for address in self.claims.replace(owner, hosted.claims.get(owner, {}))]

    def warnings(self) -> Iterator[ServiceWarning]:
        """One for each field that is not served, then one for each lost claim, then one for each frontend with too many
        backends, each in the order of Service names."""
        for name in sorted(self.unserved):
            for message in self.unserved[name]:
                yield ServiceWarning(name, message)
        yield from self.hosted.warnings
        yield from self.claims.lost()
        for ref in sorted({self.held[address].name.ref for address in self.truncated}):
            for address, frontend in self.claims.of(ref).items():
                if address in self.truncated and self.held[address].name.ref == ref:
                    yield ServiceWarning(
                        ref,
                        f"port {address.port}: it has {len(frontend.backends)} backends, "
                        f"the first {MAX_BACKENDS} by address are used",
                    )


class _Changes(NamedTuple):
    """The changes of one compilation to each table; the value None deletes the entry."""

    frontends: dict[Any, Any]
    addresses: dict[Any, Any]
    backends: dict[Any, Any]
    members: dict[Any, Any]
    revnat: dict[Any, Any]
    source_ranges: dict[Any, Any]
    names: dict[Any, Any]
    host_ports: dict[Any, Any]
    slots: dict[Any, Any]
    external_slots: dict[Any, Any]


class _Run:
    """One compilation: collects its changes to each table; `finish` then applies them."""

    def __init__(self, known: _Known, ids: Ids, slots: Slots) -> None:
        self._known = known
        self._ids = ids
        self._slots = slots
        self._changes = _Changes({}, {}, {}, {}, {}, {}, {}, {}, {}, {})
        self._gone: list[AddressPort] = []
        self._released: dict[int, AddressPort] = {}

    def set_frontend(self, address: AddressPort, new: Frontend | None) -> None:
        """Set the frontend of an address. None: no Service has the address any more."""
        known, changes = self._known, self._changes
        old = known.held.get(address)
        if old == new:
            return
        last = self._slots.internal.get(address, ()) if self._slots.internal else ()
        service_id = self._ids.services.number(address)
        chosen = self._use(new.backends) if new is not None else []
        draining = self._use(new.draining) if new is not None else []
        # UDP flows and sockets keep their backend only while it is a member of their Service. TCP Services have no
        # members.
        if address.protocol == Protocol.UDP:
            self._update_members(service_id, [*chosen, *draining], old, new)
        self._update_affinity(service_id, old, new)
        if old is not None:
            self._release(old.backends)
            self._release(old.draining)
        slots = arrange(chosen[:MAX_BACKENDS], last) if new is not None else ()
        if new is None:
            del known.held[address]
            self._gone.append(address)
        else:
            known.held[address] = new
        if len(chosen) > MAX_BACKENDS:
            known.truncated.add(address)
        elif known.truncated:
            known.truncated.discard(address)
        number = U32(service_id)
        changes.slots[address] = slots if new is not None else None
        is_host_port = new is not None and new.kind is FrontendKind.HOST_PORT
        changes.names[service_id] = new.name if new is not None and not is_host_port else None
        if is_host_port or known.tables.host_ports:
            changes.host_ports[service_id] = new.name if new is not None and is_host_port else None
        if (old is None) != (new is None):
            changes.revnat[number] = address if new is not None else None
        if old is None or new is None or old.kind is not new.kind:
            self._count(address.addr, old, new)
        master = internal_master(new, service_id, len(slots)) if new is not None else None
        if old is None or master != internal_master(old, service_id, len(last)):
            changes.frontends[FrontendKey(*address, 0)] = master
        before = last if old is not None else ()
        change_slots(changes.frontends, FrontendKey(*address, 0), service_id, before, slots)
        change_source_ranges(changes.source_ranges, service_id, old, new)
        if (old is not None and old.outside) or (new is not None and new.outside):
            self._set_outside(address, service_id, old, new)

    def _set_outside(self, address: AddressPort, service_id: int, old: Frontend | None, new: Frontend | None) -> None:
        """Set the EXTERNAL entry of a frontend. It has the number and the members of the frontend."""
        before, after = old.outside if old is not None else None, new.outside if new is not None else None
        last = self._slots.external.get(address, ())
        chosen = self._use(after.backends) if after is not None else []
        if before is not None:
            self._release(before.backends)
        slots = arrange(chosen[:MAX_BACKENDS], last) if after is not None else ()
        self._changes.external_slots[address] = slots if after is not None else None
        master = FrontendKey(*address, 0, FrontendScope.EXTERNAL.value)
        self._changes.frontends[master] = external_master(new, service_id, len(slots))
        change_slots(self._changes.frontends, master, service_id, last if before is not None else (), slots)

    def finish(self) -> None:
        """Apply the changes to the tables, and retire the numbers that are no longer used."""
        known = self._known
        for number, backend in self._released.items():
            # Another frontend may have taken the backend into use again later in this run.
            if not known.users[number]:
                del known.users[number]
                self._changes.backends[U32(number)] = None
                self._ids.backends.retire(backend)
        for address in self._gone:
            self._ids.services.retire(address)
        last, changes = known.tables, self._changes
        warnings = tuple(known.warnings())
        known.tables = ServiceTables(
            evolve(last.frontends, changes.frontends),
            evolve(last.addresses, changes.addresses),
            evolve(last.backends, changes.backends),
            evolve(last.members, changes.members),
            evolve(last.revnat, changes.revnat),
            evolve(last.source_ranges, changes.source_ranges),
            evolve(last.names, changes.names),
            evolve(last.host_ports, changes.host_ports),
            Slots(evolve(last.slots.internal, changes.slots), evolve(last.slots.external, changes.external_slots)),
            warnings if warnings != last.warnings else last.warnings,
            evolve(last.health_checks, known.health_checks),
        )
        known.health_checks = {}

    def _use(self, backends: Iterable[AddressPort]) -> list[int]:
        numbers, known = [], self._known.users
        for backend in backends:
            number = self._ids.backends.number(backend)
            users = known.get(number, 0)
            if not users:
                self._changes.backends[U32(number)] = backend
            known[number] = users + 1
            numbers.append(number)
        return numbers

    def _update_members(
        self, service_id: int, numbers: Sequence[int], old: Frontend | None, new: Frontend | None
    ) -> None:
        """Update the members of a UDP Service. `numbers`: the backend_ids of new.backends and new.draining, in this
        order."""
        before = (*old.backends, *old.draining) if old is not None else ()
        after = dict(zip(numbers, (*new.backends, *new.draining), strict=True)) if new is not None else {}
        for backend in before:
            self._changes.members[MemberKey(service_id, self._ids.backends.number(backend))] = None
        self._changes.members.update({MemberKey(service_id, number): backend for number, backend in after.items()})

    def _update_affinity(self, service_id: int, old: Frontend | None, new: Frontend | None) -> None:
        """Update the members for session affinity: the backends that take new flows."""
        members, owner = self._changes.members, service_id | MEMBER_AFFINITY
        for frontend, gone in ((old, True), (new, False)):
            if frontend is None or not frontend.affinity_seconds:
                continue
            for backend in frontend.backends:
                members[MemberKey(owner, self._ids.backends.number(backend))] = None if gone else backend
            for backend in frontend.outside.backends if frontend.outside is not None else ():
                number = self._ids.backends.number(backend) | MEMBER_EXTERNAL
                members[MemberKey(owner, number)] = None if gone else backend

    def _release(self, backends: Iterable[AddressPort]) -> None:
        for backend in backends:
            number = self._ids.backends.number(backend)
            self._known.users[number] -= 1
            if not self._known.users[number]:
                self._released[number] = backend

    def _count(self, addr: IPAddress, old: Frontend | None, new: Frontend | None) -> None:
        """Update the entry of an address, which all its frontends share. Only a ClusterIP has no other ports than those
        of its Service: the other addresses may be the node's own."""
        before = self._known.ports.get(addr, (0, 0))
        total = before[0] + (new is not None) - (old is not None)
        refusing = before[1] + _is_cluster_ip(new) - _is_cluster_ip(old)
        if (not before[0], not before[1]) != (not total, not refusing):
            flags = AddressFlag.REFUSE_UNSERVED if refusing else 0
            self._changes.addresses[AddressKey(addr)] = U32(flags) if total else None
        self._known.ports[addr] = total, refusing
        if not total:
            del self._known.ports[addr]


def _is_cluster_ip(frontend: Frontend | None) -> bool:
    return frontend is not None and frontend.kind is FrontendKind.CLUSTER_IP


def _changed(old: Mapping[ObjectRef, T], new: Mapping[ObjectRef, T]) -> Iterator[tuple[ObjectRef, T | None, T | None]]:
    """The names of objects that were added, deleted or changed, with their old and new values."""
    for ref, (before, after) in changes_between(old, new).items():
        if before != after:
            yield ref, before, after
