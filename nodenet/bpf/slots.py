"""Gives the entries of a table their slots in a new map of slots (bpf/lib/fair.h)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
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
        placed, gone = _placed(entries, buckets.max_entries, kind.age)
        for index, found in placed.items():
            value = slots.bucket_of(found, buckets.max_entries, kind.owner)
            buckets.replace(index.to_bytes(4, "little"), value)
        for key in gone:
            entries.remove(key)
    return sum(map(len, placed.values()))


def _clear(entries: RawTable) -> None:
    for chunk in entries.chunks():
        for key, _ in chunk:
            entries.remove(key)


def _placed(entries: RawTable, buckets: int, age: Callable[[bytes], int]) -> tuple[dict[int, list[Entry]], list[bytes]]:
    """Entries by the index of their bucket, and keys of those that get no slot."""
    placed: dict[int, list[Entry]] = defaultdict(list)
    gone: list[bytes] = []
    for chunk in entries.chunks():
        for key, value in chunk:
            placed[slots.place_of(key, buckets)[0]].append((key, value))
    for found in placed.values():
        found.sort(key=lambda entry: age(entry[1]), reverse=True)
        gone += [key for key, _ in found[slots.WAYS :]]
        del found[slots.WAYS :]
    return placed, gone
