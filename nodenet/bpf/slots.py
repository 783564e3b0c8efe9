"""Gives the entries of nn_ct their slots in a new nn_ct_slot (bpf/lib/fair.h)."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing

from nodenet import tables
from nodenet.abi import slots
from nodenet.abi.carried import ct_age
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import Entry, RawTable


def adopt(pins: Pins) -> int:
    """Fill the new nn_ct_slot before any program uses it. Entries for which their bucket has no slot, its oldest ones,
    are deleted. Returns how many flows got a slot. Raises OSError."""
    fresh = pins.new_maps / tables.CT.name
    with (
        closing(RawTable(tables.CT.name, fresh if fresh.exists() else pins.map(tables.CT.name))) as flows,
        closing(RawTable(tables.CT_SLOT.name, pins.new_maps / tables.CT_SLOT.name)) as buckets,
    ):
        placed, gone = _placed(flows, buckets.max_entries)
        for index, entries in placed.items():
            buckets.replace(index.to_bytes(4, "little"), slots.bucket_of(entries, buckets.max_entries))
        for key in gone:
            flows.remove(key)
    return sum(map(len, placed.values()))


def _placed(flows: RawTable, buckets: int) -> tuple[dict[int, list[Entry]], list[bytes]]:
    """Entries by the index of their bucket, and keys of those that get no slot."""
    placed: dict[int, list[Entry]] = defaultdict(list)
    gone: list[bytes] = []
    for chunk in flows.chunks():
        for key, value in chunk:
            placed[slots.place_of(key, buckets)[0]].append((key, value))
    for entries in placed.values():
        entries.sort(key=lambda entry: ct_age(entry[1]), reverse=True)
        gone += [key for key, _ in entries[slots.WAYS :]]
        del entries[slots.WAYS :]
    return placed, gone
