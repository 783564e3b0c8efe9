"""Assigns backends to the slots of a frontend, so that few slots change between compilations and over a restart.

Slots keep their backends: the start is the assignment of the last compilation, or after a restart the kernel's. A free
slot gets a new backend, or else the backend of the last slot. One removed backend therefore costs at most one slot
write, one deletion and the master entry, for any number of backends; in a sorted order all following slots would
change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from nodenet.abi import AddressPort, FrontendScope
from nodenet.compile.ids import Ids
from nodenet.compile.state import Table

Assigned = Mapping[AddressPort, tuple[int, ...]]


class Slots(NamedTuple):
    """The backend_ids in slots 1, 2, ... of each frontend: of its INTERNAL entry, and of the EXTERNAL one if it has
    one."""

    internal: Assigned
    external: Assigned


NO_SLOTS = Slots(MappingProxyType({}), MappingProxyType({}))


def restore(ids: Ids, tables: Mapping[str, Table]) -> Slots:
    """Take over the numbers of pinned nn_revnat and nn_backend; returns the slots that nn_frontend holds."""
    ids.services.restore(_numbers_of(tables.get("nn_revnat", {})))
    ids.backends.restore(_numbers_of(tables.get("nn_backend", {})))
    return _slots_of(tables.get("nn_frontend", {}))


def arrange(wanted: Sequence[int], previous: Sequence[int]) -> tuple[int, ...]:
    """Assign `wanted` (without duplicates) to slots, changing few of `previous` (see the module's docstring)."""
    # The common case: the same backends, so no slot changes.
    if len(wanted) == len(previous) and set(wanted) == set(previous):
        return tuple(previous)
    missing = dict.fromkeys(wanted)
    slots: list[int | None] = []
    for backend in previous:
        # After a crash during a change one backend may be in two slots: the second slot counts as free.
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


def _numbers_of(table: Table) -> Iterator[tuple[AddressPort, int]]:
    """(address and port, number) for each entry of nn_backend or nn_revnat. Sorted, so that duplicates always have the
    same result."""
    return ((table[key], key.value) for key in sorted(table))


def _slots_of(table: Table) -> Slots:
    internal: dict[AddressPort, tuple[int, ...]] = {}
    external: dict[AddressPort, tuple[int, ...]] = {}
    for key, value in table.items():
        if key.slot:
            continue
        address = AddressPort(*key[:3])
        entries = (table.get(key._replace(slot=slot)) for slot in range(1, value.backends + 1))
        # A missing slot becomes 0, which is not a valid backend_id: the slot counts as free.
        held = tuple(entry.backend_id if entry else 0 for entry in entries)
        (external if key.scope == FrontendScope.EXTERNAL else internal)[address] = held
    return Slots(internal, external)
