"""Which backend sits in which slot of a frontend, from one compilation to the next and over a restart.

A frontend's slots keep what they held: the assignment of the last compilation (at a restart: the kernel's) is
the start, a hole is filled by a new backend or else by the last slot's. So one backend that goes costs at most one slot
write, one deletion and the master entry, whatever the number of backends; a sorted order would shift all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nodenet.abi import AddressPort, FrontendKey
from nodenet.compile.ids import Ids
from nodenet.compile.state import Table

Slots = Mapping[AddressPort, tuple[int, ...]]


def restore(ids: Ids, tables: Mapping[str, Table]) -> Slots:
    """Take over the numbers of pinned nn_revnat and nn_backend; returns the slots that nn_frontend holds."""
    ids.services.restore(_standing_for(tables.get("nn_revnat", {})))
    ids.backends.restore(_standing_for(tables.get("nn_backend", {})))
    return _slots_of(tables.get("nn_frontend", {}))


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
