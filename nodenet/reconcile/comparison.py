"""Compares the maps with our last writes in slices, so that changes need not wait for a full comparison.

It only finds out whether a table differs. The loop then reads all tables completely and repairs them in the usual
order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Protocol

from nodenet.reconcile.apply import ApplyError
from nodenet.reconcile.plan import Tables, Write
from nodenet.reconcile.switch import Entry

# Entries per slice. Unpacking and comparing an entry takes about 10 us, so a change that arrives during a slice waits
# only a few milliseconds.
SLICE_ENTRIES = 400


class Readable(Protocol):
    """A Table of which only the entries are read."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...


class Comparison:
    """Walks over the named tables, one walk at a time. No two methods may run at the same time.

    The loop may write between two slices and reports the keys with `wrote`. The entry of such a key may have been read
    before the write, so a difference proves nothing. These keys are compared only in the next walk.
    """

    def __init__(self, tables: Mapping[str, Readable]) -> None:
        self._tables = tables
        # Names of the tables that remain. The first one is being compared.
        self._left: list[str] = []
        self._walk: _Walk | None = None

    @property
    def under_way(self) -> bool:
        return bool(self._left)

    def begin(self, names: Iterable[str]) -> None:
        """Start a walk, unless one is under way."""
        self._left = self._left or list(names)

    def skip(self, names: Collection[str]) -> None:
        """Leave these tables out of this walk, because they were or will be read completely."""
        if self._left and self._left[0] in names:
            self._walk = None
        self._left = [name for name in self._left if name not in names]

    def wrote(self, writes: Iterable[Write | Entry]) -> None:
        """Report writes that are about to be made."""
        if self._walk is not None:
            name = self._left[0]
            self._walk.written.update(write.key for write in writes if write.table == name)

    def step(self, held: Tables, entries: int = SLICE_ENTRIES) -> str | None:
        """Compare the next slice with `held`. Returns the name of a table that differs, else None.

        A table that differs is removed from the walk. So is one that cannot be read, for which ApplyError is raised.
        Blocks. No mapping in `held` may be changed in place.
        """
        while self._left and entries > 0:
            name = self._left[0]
            try:
                if self._walk is None:
                    self._walk = _Walk(self._tables[name])
                compared, same = self._walk.step(held[name], entries)
            except Exception as error:
                self.skip((name,))
                raise ApplyError(name, f"{name}: read", error) from error
            if not same or self._walk.over:
                self.skip((name,))
            if not same:
                return name
            entries -= compared
        return None


class _Walk:
    """The walk over one table."""

    def __init__(self, table: Readable) -> None:
        self.written: set[Any] = set()
        self.over = False
        self._entries = iter(table.items())
        self._seen: set[Any] = set()

    def step(self, held: Mapping[Any, Any], entries: int) -> tuple[int, bool]:
        """Compare up to `entries` entries. Returns how many, and whether all of them are equal to ours. At the end it
        also finds keys of ours that the kernel did not return."""
        compared = 0
        for key, value in islice(self._entries, entries):
            compared += 1
            self._seen.add(key)
            if held.get(key) != value and key not in self.written:
                return compared, False
        self.over = compared < entries
        return compared, not self.over or self._saw_all(held)

    def _saw_all(self, held: Mapping[Any, Any]) -> bool:
        """Whether the kernel returned all our keys, but for written ones. Each key that it returned and that was not
        written is one of ours, so equal numbers mean that none is missing."""
        seen = len(self._seen) - len(self._seen & self.written)
        return seen == len(held) - sum(1 for key in self.written if key in held)
