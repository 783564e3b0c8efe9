"""Compares the maps with what we left in them, a slice at a time, so that changes need not wait for all of it.

It only finds out whether a table differs. The loop then reads the tables whole and repairs them in the usual order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from nodenet.reconcile.apply import ApplyError, Table
from nodenet.reconcile.plan import Tables, Write

# Entries in one slice. Unpacking and comparing one takes about 10 us, so a change that comes during a slice waits for
# a few milliseconds at most.
SLICE_ENTRIES = 400


class Comparison:
    """One walk over the named tables after the other. No two methods may run at the same time.

    Between two slices the loop writes. `wrote` reports the keys: the kernel's entry was perhaps read before the write,
    so it proves nothing. These keys are left to the next walk.
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables
        # Names of tables still to compare, the one that is being compared first.
        self._left: list[str] = []
        self._walk: _Walk | None = None

    @property
    def under_way(self) -> bool:
        return bool(self._left)

    def begin(self, names: Iterable[str]) -> None:
        """Start a walk. A walk that is under way goes on instead."""
        self._left = self._left or list(names)

    def skip(self, names: Collection[str]) -> None:
        """Leave these tables out of this walk: they were read whole meanwhile, or they will be."""
        if self._left and self._left[0] in names:
            self._walk = None
        self._left = [name for name in self._left if name not in names]

    def wrote(self, writes: Iterable[Write]) -> None:
        """These writes are made now, or they are tried."""
        if self._walk is not None:
            name = self._left[0]
            self._walk.written.update(write.key for write in writes if write.table == name)

    def step(self, held: Tables, entries: int = SLICE_ENTRIES) -> str | None:
        """Compare the next slice with `held`; the name of the first table that differs, else None.

        A table that differs leaves the walk. Blocks. Raises ApplyError that names the table that cannot be read, which
        leaves the walk too. No mapping in `held` may be changed in place.
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
    """Of one table: every entry of the kernel first, then what we hold and the kernel did not show."""

    def __init__(self, table: Table) -> None:
        self.written: set[Any] = set()
        self.over = False
        self._entries = iter(table.items())
        self._seen: set[Any] = set()
        self._keys: Iterator[Any] | None = None

    def step(self, held: Mapping[Any, Any], entries: int) -> tuple[int, bool]:
        """How many entries were compared, and whether all of them are as we left them."""
        if self._keys is not None:
            return self._find_missing(self._keys, entries)
        compared = 0
        for key, value in islice(self._entries, entries):
            compared += 1
            self._seen.add(key)
            if held.get(key) != value and key not in self.written:
                return compared, False
        if compared < entries:
            # A key that comes or goes from here on is among the written ones.
            self._keys = iter(held)
        return compared, True

    def _find_missing(self, keys: Iterator[Any], entries: int) -> tuple[int, bool]:
        compared = 0
        for key in islice(keys, entries):
            compared += 1
            if key not in self._seen and key not in self.written:
                return compared, False
        self.over = compared < entries
        return compared, True
