"""Copies the content of replaced maps into their successors, for maps that user space cannot fill again.

It copies twice. Before the new maps are in use, it copies everything. After all programs were replaced, it copies what
the old programs wrote in the meantime. Until then the old maps stay pinned in maps-old, so that a crash at any moment
loses nothing: the next start merges them again. docs/decisions/0031-carried-maps.md has the rules and their limits.
"""

from __future__ import annotations

import errno
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from nodenet import tables
from nodenet.bpf import layout
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import Entry, RawTable
from nodenet.tables import Carried
from nodenet.tables.conversion import converter
from nodenet.tables.types import Convert

_64_BITS = (1 << 64) - 1


class _Fingerprints:
    """A set of entries, stored as 8-byte hashes. `has` is wrong about once in 10 ** 13 queries."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._sorted = True

    def add(self, key: bytes, value: bytes) -> None:
        self._numbers.append(hash(key + value) & _64_BITS)
        self._sorted = False

    def has(self, key: bytes, value: bytes) -> bool:
        if not self._sorted:
            self._numbers = array("Q", sorted(self._numbers))
            self._sorted = True
        number = hash(key + value) & _64_BITS
        place = bisect_left(self._numbers, number)
        return place < len(self._numbers) and self._numbers[place] == number


class Transfer:
    """Copies from one old map to its successor. `fresh`: the new map is empty and not in use yet."""

    def __init__(self, source: RawTable, target: RawTable, carried: Carried, convert: Convert, *, fresh: bool) -> None:
        self.source = source
        self.target = target
        self._carried = carried
        self._convert = convert
        self._fresh = fresh
        self._room = target.max_entries - (target.max_entries // carried.spare if carried.spare else 0)
        # The entries that the first copy read, and those that it wrote.
        self._read = _Fingerprints()
        self._left = _Fingerprints()
        # The newest entry with each key that several old entries may give: its age and a hash of its old key.
        self._newest: dict[bytes, tuple[int, int]] = {}

    def first(self) -> int:
        """Copy all entries. Returns how many were copied. Raises OSError."""
        self._find_newest()
        copied, oldest, left = 0, self._oldest(), _Fingerprints()
        for chunk in self.source.chunks():
            for key, value in chunk:
                self._read.add(key, value)
            entries = [entry for entry in self._converted(chunk) if self._age(entry) >= oldest]
            entries = entries[: self._room - copied]
            if self._fresh:
                self.target.insert_all(entries)
            else:
                # Existing entries were written by the new programs, or by an earlier agent whose switch was
                # interrupted.
                entries = [entry for entry in entries if self._merge(*entry)]
            for key, value in entries:
                left.add(key, value)
            copied += len(entries)
        self._left = left
        return copied

    def last(self) -> int:
        """Copy the entries that were written to the old map since `first`. Returns how many. Raises OSError."""
        copied = 0
        self._find_newest()
        for chunk in self.source.chunks():
            self._remove_outdated(chunk)
            written = [entry for entry in chunk if not self._read.has(*entry)]
            copied += sum([self._merge(*entry) for entry in self._converted(written)])
        return copied

    def close(self) -> None:
        self.source.close()
        self.target.close()

    def _find_newest(self) -> None:
        """Find which old entries give a key that another one gives too."""
        self._newest.clear()
        for chunk in self.source.chunks():
            for old_key, old_value in chunk:
                made = list(self._convert(old_key, old_value))
                if len(made) == 1:
                    # So it is for all entries of this map, and keys do not meet.
                    return
                for key, value in made:
                    rank = self._rank(old_key, (key, value))
                    self._newest[key] = max(rank, self._newest.get(key, rank))

    def _remove_outdated(self, entries: Iterable[Entry]) -> None:
        """Remove what the first copy wrote for old entries that have lost a key to a newer one since then."""
        if not self._newest:
            return
        for old_key, old_value in entries:
            made = [(key, self._carried.adapt(value)) for key, value in self._convert(old_key, old_value)]
            if self._is_newest(old_key, made):
                continue
            for key, value in made:
                # What the new programs wrote meanwhile stays.
                if self.target.lookup(key) == value and self._left.has(key, value):
                    self.target.remove(key)

    def _is_newest(self, old_key: bytes, made: Iterable[Entry]) -> bool:
        return all(self._newest.get(entry[0], (0, 0)) <= self._rank(old_key, entry) for entry in made)

    def _rank(self, old_key: bytes, made: Entry) -> tuple[int, int]:
        return self._age(made), hash(old_key)

    def _converted(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The new entries. An old entry that gives several gives all of them or none: none if a newer old entry gives
        one of their keys. A half of a flow must not be combined with the half of another flow."""
        for old_key, old_value in entries:
            made = [(key, self._carried.adapt(value)) for key, value in self._convert(old_key, old_value)]
            if len(made) < 2 or self._is_newest(old_key, made):
                yield from made

    def _merge(self, key: bytes, value: bytes) -> bool:
        """Write one entry to the new map. Returns True if that changed the map."""
        present = self.target.lookup(key)
        if present is None:
            return self._add(key, value)
        # If the new map still has what the first copy wrote, `value` is newer. Otherwise both changed since then.
        best = value if self._left.has(key, present) else self._carried.merge(value, present)
        return best != present and self.target.replace(key, best)

    def _add(self, key: bytes, value: bytes) -> bool:
        """An entry for which a plain hash map has no room is left out, as a full LRU map would evict one."""
        try:
            return self.target.add(key, value)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            return False

    def _age(self, entry: Entry) -> int:
        return self._carried.age(entry[1]) if self._carried.age else 0

    def _oldest(self) -> int:
        """The age of the oldest entry to copy. A smaller map evicts entries when more are inserted, but not the oldest
        ones. So the oldest entries are left out."""
        room = self._room
        if not self._carried.age or self.source.max_entries <= room:
            return 0
        ages = array("I", (self._age(entry) for chunk in self.source.chunks() for entry in self._converted(chunk)))
        return sorted(ages)[-room] if len(ages) > room else 0


class Carrying:
    """All transfers of one load. `copied`: how many entries the first copy made, by the map that got them."""

    def __init__(self, pins: Pins, transfers: Iterable[Transfer] = ()) -> None:
        self.copied: dict[str, int] = {}
        self._pins = pins
        self._transfers = list(transfers)

    @property
    def names(self) -> set[str]:
        """The names of the maps that are copied from."""
        return {transfer.source.name for transfer in self._transfers}

    def first(self) -> None:
        """Do the first copy of all maps. Raises OSError."""
        for transfer in self._transfers:
            name = transfer.target.name
            self.copied[name] = self.copied.get(name, 0) + transfer.first()

    def finish(self) -> dict[str, int]:
        """Do the second copy, after the last program was replaced, and unpin the old maps. Returns by map how many
        entries the old programs wrote since the first copy. Raises OSError; then the old maps stay, and the next start
        copies again."""
        late: dict[str, int] = {}
        for transfer in self._transfers:
            name = transfer.target.name
            late[name] = late.get(name, 0) + transfer.last()
        self._pins.clear_old_maps()
        self.close()
        return late

    def close(self) -> None:
        for transfer in self._transfers:
            transfer.close()
        self._transfers.clear()


def prepare(pins: Pins, replaced: Iterable[str] = ()) -> Carrying:
    """Find the copies to make: from the `replaced` maps, whose successors are in maps-new, from maps that this version
    does not have any more (tables.SUCCESSORS), and from the maps in maps-old, whose switch was interrupted. The newest
    sources come first, because a later copy does not overwrite newer entries."""
    ended = [name for name in tables.SUCCESSORS if pins.map(name).exists()]
    sources = [(name, pins.map(name)) for name in (*replaced, *ended)] + pins.replaced()
    transfers: list[Transfer] = []
    fresh = {name for name in tables.MAPS if (pins.new_maps / name).exists()}
    for name, path in sources:
        successor = tables.SUCCESSORS.get(name, name)
        new = pins.new_maps / successor
        made = _transfer(name, path, new if new.exists() else pins.map(successor), successor in fresh)
        if made is not None:
            transfers.append(made)
            fresh.discard(successor)
    return Carrying(pins, transfers)


def _transfer(name: str, source: Path, target: Path, fresh: bool) -> Transfer | None:
    """None for a map that is not carried, and for one whose entries cannot be read, because its layout is unknown."""
    declared = tables.MAPS.get(target.name)
    if declared is None or declared.carried is None or not target.exists():
        return None
    old = RawTable(name, source)
    other = name if name != target.name else ""
    # A per-CPU map has several values per key, which the converters do not support.
    convert = None if old.percpu else converter(declared.carried, layout.of_map(old.info), other)
    if convert is None:
        old.close()
        return None
    return Transfer(old, RawTable(target.name, target), declared.carried, convert, fresh=fresh)
