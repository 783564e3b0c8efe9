"""Makes the writes of Services in order, on any object with the interface of a map.

A full map does not stop it. Entries that do not fit are left out together with the writes that depend on them, all
other writes are made, and an error at the end reports what was left out. A Service that does not fit keeps its old
state as a whole, but never admits more sources than are wanted. nodenet.reconcile.commit writes policy.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from nodenet.errors import NodenetError, TableFullError
from nodenet.reconcile.left_out import Dependants, EarlyDeletes
from nodenet.reconcile.plan import Write

# A batch costs less than single writes from about ten entries on. Its keys and values are one piece of memory each.
_FEWEST_AT_ONCE, _MOST_AT_ONCE = 16, 4096


class Table(Protocol):
    """One map of the kernel, with its record types (nodenet.tables). Every method raises OSError or NodenetError on
    failure."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """All entries, each once. If the map changes meanwhile, some may be missing."""
        ...

    def update(self, key: Any, value: Any) -> None:
        """Insert or replace. A full map raises TableFullError, or OSError with E2BIG or ENOSPC."""
        ...

    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        """Insert or replace in this order, with one call. Returns how many were made before the first failure, and
        raises nothing for it. 0 if the table does not support it."""
        ...

    def delete(self, key: Any) -> None:
        """Delete. Not an error if the key does not exist."""
        ...


class ApplyError(NodenetError):
    """A write or the read of a table failed. `write` is None for a read. `left`: the writes that were not made."""

    def __init__(
        self,
        table: str,
        action: str,
        cause: BaseException | None,
        write: Write | None = None,
        left: tuple[Write, ...] = (),
    ) -> None:
        super().__init__(
            f"{action}: {cause}" if cause else action,
            "the agent tries again by itself; see `nodenet map list` for full maps",
        )
        self.table = table
        self.write = write
        self.left = left


class FullError(ApplyError):
    """All writes were made except for those that did not fit and those that depend on them. `table` and `write` are
    those of the first one; `left` has all."""

    def __init__(self, first: ApplyError, left: tuple[Write, ...]) -> None:
        counts = Counter(write.table for write in left)
        others = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        super().__init__(first.table, f"{first} (writes left out: {others})", None, first.write, left)


def read(tables: Mapping[str, Table], names: Iterable[str]) -> dict[str, dict[Any, Any]]:
    """Read the content of the named maps. Raises ApplyError that names the table."""
    held: dict[str, dict[Any, Any]] = {}
    for name in names:
        try:
            held[name] = dict(tables[name].items())
        except (OSError, NodenetError) as error:
            raise ApplyError(name, f"{name}: read", error) from error
    return held


def apply(
    writes: Iterable[Write],
    tables: Mapping[str, Table],
    held: Mapping[str, MutableMapping[Any, Any]],
    done: Counter[str],
) -> None:
    """Make the writes in order. After each write, updates `held` and counts it in `done` by table.

    At the first failure other than a full map, raises ApplyError that names table and key, because later writes may
    depend on it. If entries did not fit, raises FullError at the end. `held` has all tables of the group; written
    tables are changed in place.
    """
    _Application(list(writes), tables, held, done).run()


class _Application:
    """One call of `apply`."""

    def __init__(
        self,
        writes: list[Write],
        tables: Mapping[str, Table],
        held: Mapping[str, MutableMapping[Any, Any]],
        done: Counter[str],
    ) -> None:
        self._writes = writes
        self._tables = tables
        self._held = held
        self._done = done
        self._first: ApplyError | None = None
        self._dependants = Dependants(held)
        self._early = EarlyDeletes(writes, held)
        self._left: list[Write] = []
        # Tables whose writes are made one by one, because the kernel made none of a batch.
        self._no_batches: set[str] = set()

    def run(self) -> None:
        place = 0
        has_batches = len(self._writes) >= _FEWEST_AT_ONCE
        while place < len(self._writes):
            made = self._write_batch(place) if has_batches and self._first is None else 0
            if not made:
                self._write(place)
            place += made or 1
        if self._first is not None:
            raise FullError(self._first, tuple(self._left)) from self._first

    def _write_batch(self, place: int) -> int:
        """Make the sets of one table that begin at `place`, in one call. Returns how many were made: `_write` makes the
        next one, and finds out why it failed. 0 if they are too few for a batch."""
        table, end = self._writes[place].table, place
        last = min(place + _MOST_AT_ONCE, len(self._writes))
        if last - place < _FEWEST_AT_ONCE or table in self._no_batches:
            return 0
        while end < last and self._writes[end].table == table and self._writes[end].value is not None:
            end += 1
        if end - place < _FEWEST_AT_ONCE:
            return 0
        batch = [(write.key, write.value) for write in self._writes[place:end]]
        made = self._tables[table].update_many(batch)
        if made < len(batch):
            self._no_batches.add(table)
        self._held[table].update(batch[:made])
        self._done[table] += made
        return made

    def _write(self, place: int) -> None:
        """Make one write, or leave it out."""
        write = self._writes[place]
        if self._early.has(write):
            return
        if self._first is not None and self._dependants.has(write):
            self._left.append(write)
            if (closer := self._dependants.restricted(write)) is not None:
                self._try(closer, place)
            return
        self._try(write, place)

    def _try(self, write: Write, place: int) -> None:
        """Make this write, in place of the one at `place`, or leave it out."""
        try:
            self._make_with_room(write)
        except (OSError, NodenetError) as error:
            if not is_full(error):
                rest = tuple(one for one in self._writes[place:] if not self._early.has(one))
                raise ApplyError(write.table, str(write), error, write, (*self._left, *rest)) from error
            self._first = self._first or ApplyError(write.table, str(write), error, write)
            self._dependants.begin(self._writes)
            self._dependants.left_out(write)
            self._left.append(write)

    def _make_with_room(self, write: Write) -> None:
        """Make one write. If it does not fit, first make the deletes that are safe earlier than planned."""
        try:
            self._make(write)
        except (OSError, NodenetError) as error:
            deletes = self._early.take(write) if is_full(error) else []
            if not deletes:
                raise
            for one in (*deletes, write):
                self._make(one)

    def _make(self, write: Write) -> None:
        if write.value is None:
            self._tables[write.table].delete(write.key)
            self._held[write.table].pop(write.key, None)
        else:
            self._tables[write.table].update(write.key, write.value)
            self._held[write.table][write.key] = write.value
        self._done[write.table] += 1


def is_full(error: BaseException) -> bool:
    """True if this error of a write means that the map has no room."""
    return isinstance(error, TableFullError) or (
        isinstance(error, OSError) and error.errno in (errno.E2BIG, errno.ENOSPC)
    )
