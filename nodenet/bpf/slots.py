"""Gives the entries of a table their slots in a new map of slots (bpf/lib/fair.h)."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing

from nodenet import tables
from nodenet.abi import slots
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import Entry, RawTable


def adopt_all(pins: Pins) -> None:
    """Fill the new maps of slots before any program uses them. Raises OSError."""
    for one in tables.MAPS.values():
        if one.slots is not None and (pins.new_maps / one.name).exists():
            adopt(pins, one.name, one.slots)


def adopt(pins: Pins, name: str, kind: tables.Slots) -> int:
    """Entries for which their bucket has no slot, its oldest ones, are deleted. Returns how many got a slot."""
    fresh = pins.new_maps / kind.of
    with (
        closing(RawTable(kind.of, fresh if fresh.exists() else pins.map(kind.of))) as entries,
        closing(RawTable(name, pins.new_maps / name)) as buckets,
    ):
        if kind.owner is None or kind.age is None:
            _clear(entries)
            return 0
        placed, gone = _placed(entries, buckets.max_entries, kind)
        for index, found in placed.items():
            value = slots.bucket_of(found, buckets.max_entries, kind.owner)
            buckets.replace(index.to_bytes(4, "little"), value)
        for key, value in gone:
            entries.remove(key)
            for other in kind.others(key, value):
                entries.remove(other)
    return sum(map(len, placed.values()))


def _clear(entries: RawTable) -> None:
    for chunk in entries.chunks():
        for key, _ in chunk:
            entries.remove(key)


def _placed(entries: RawTable, buckets: int, kind: tables.Slots) -> tuple[dict[int, list[Entry]], list[Entry]]:
    """Entries by the index of their bucket, and those that get no slot."""
    placed: dict[int, list[Entry]] = defaultdict(list)
    gone: list[Entry] = []
    age = kind.age or (lambda _: 0)
    for chunk in entries.chunks():
        for key, value in chunk:
            if not kind.follows(key):
                placed[slots.place_of(key, buckets)[0]].append((key, value))
    for found in placed.values():
        found.sort(key=lambda entry: age(entry[1]), reverse=True)
        gone += found[slots.WAYS :]
        del found[slots.WAYS :]
    return placed, gone
