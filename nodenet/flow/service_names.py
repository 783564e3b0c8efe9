"""The names of Services in flows, by number and address. Pure and incremental."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from nodenet.compile.services import has_frontends
from nodenet.compile.state import ServicePortName
from nodenet.evolved import Evolved, changed_keys, evolve
from nodenet.flow.types import ServiceName
from nodenet.model import IPAddress, ObjectRef, Service

K = TypeVar("K", bound=Hashable)


class ServiceNames:
    """Three tables of flow.types.NameTable: `numbers`, `frontends` and `addresses`.

    If two Services claim one address, the first by name is used.
    """

    def __init__(self) -> None:
        self._services: Mapping[ObjectRef, Service] = {}
        self._known_numbers: Mapping[int, ServicePortName] = {}
        self._frontends: _Claimed[tuple[IPAddress, int, int]] = _Claimed()
        self._addresses: _Claimed[IPAddress] = _Claimed()
        self.numbers: Mapping[int, ServiceName] = Evolved({})

    @property
    def frontends(self) -> Mapping[tuple[IPAddress, int, int], ServiceName]:
        return self._frontends.table

    @property
    def addresses(self) -> Mapping[IPAddress, ServiceName]:
        return self._addresses.table

    def update(self, services: Mapping[ObjectRef, Service], numbers: Mapping[int, ServicePortName]) -> None:
        """Update to the current Services, and to the service_ids that events contain."""
        changed = changed_keys(self._known_numbers, numbers)
        names = {number: numbers.get(number) for number in changed}
        self.numbers = evolve(self.numbers, {n: ServiceName(*name.ref) if name else None for n, name in names.items()})
        for ref in changed_keys(self._services, services):
            old, new = self._services.get(ref), services.get(ref)
            self._frontends.change(ref, _frontends(old), _frontends(new))
            self._addresses.change(ref, _addresses(old), _addresses(new))
        self._frontends.finish()
        self._addresses.finish()
        self._services, self._known_numbers = services, numbers


class _Claimed(Generic[K]):
    """The Services that claim each key, and a table with the first Service of each key."""

    def __init__(self) -> None:
        self.table: Mapping[K, ServiceName] = Evolved({})
        self._claims: dict[K, tuple[ObjectRef, ...]] = {}
        self._touched: set[K] = set()

    def change(self, ref: ObjectRef, old: Iterable[K], new: Iterable[K]) -> None:
        before, after = set(old), set(new)
        for key in before - after:
            self._claims[key] = tuple(other for other in self._claims[key] if other != ref)
        for key in after - before:
            self._claims[key] = tuple(sorted((*self._claims.get(key, ()), ref)))
        self._touched |= before ^ after

    def finish(self) -> None:
        """Apply the changes to the table."""
        changes: dict[K, ServiceName | None] = {}
        for key in self._touched:
            refs = self._claims[key]
            changes[key] = ServiceName(*refs[0]) if refs else None
            if not refs:
                del self._claims[key]
        self.table = evolve(self.table, changes)
        self._touched = set()


def _addresses(service: Service | None) -> tuple[IPAddress, ...]:
    """A Service's own addresses. Not those of nodes: events of NodePorts have the Service's number."""
    if service is None or not has_frontends(service):
        return ()
    return (*service.cluster_ips, *service.load_balancer_ips, *service.external_ips)


def _frontends(service: Service | None) -> list[tuple[IPAddress, int, int]]:
    return [
        (ip, port.port, int(port.protocol)) for ip in _addresses(service) for port in (service.ports if service else ())
    ]
