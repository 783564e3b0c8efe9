"""Makes the writes of Services in order, on any object with the interface of a map.

A full map does not stop it. Entries that do not fit are left out together with the writes that depend on them, all
other writes are made, and an error at the end reports what was left out. A Service that does not fit keeps its old
state as a whole. nodenet.reconcile.commit writes policy.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from nodenet.abi import MEMBER_AFFINITY, AddressKey, FrontendKey, MemberKey, SourceRangeKey
from nodenet.errors import NodenetError, TableFullError
from nodenet.reconcile.plan import Write

# The tables to which frontends refer.
_BEHIND_FRONTENDS = ("nn_service_addr", "nn_backend", "nn_member", "nn_revnat", "nn_source_range")

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
        self._dependants = _Dependants(held)
        self._early = _EarlyDeletes(writes, held)
        self._left: list[Write] = []
        # Tables whose writes are made one by one, because the kernel made none of a batch.
        self._no_batches: set[str] = set()

    def run(self) -> None:
        place = 0
        while place < len(self._writes):
            made = self._write_batch(place) if self._first is None else 0
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
            return
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


class _EarlyDeletes:
    """Finds deletes that are safe earlier than planned, to make room for a write that did not fit: entries to which no
    frontend refers."""

    def __init__(self, writes: list[Write], held: Mapping[str, Mapping[Any, Any]]) -> None:
        self._writes = writes
        self._held = held
        self._made: set[tuple[str, Any]] = set()
        self._looked: set[str] = set()

    def has(self, write: Write) -> bool:
        """True if this delete was made early."""
        return bool(self._made) and write.is_delete and (write.table, write.key) in self._made

    def take(self, write: Write) -> list[Write]:
        """The deletes to make before the write is tried again. They are returned only once per table, because no
        further entry becomes unused before the frontends are written."""
        if write.table not in _BEHIND_FRONTENDS or write.table in self._looked:
            return []
        self._looked.add(write.table)
        used = _used(self._held)[write.table]
        found = [w for w in self._writes if w.is_delete and w.table == write.table and _reference(w.key) not in used]
        self._made.update((one.table, one.key) for one in found)
        return found


class _Dependants:
    """Finds the later writes that must not be made after an entry did not fit: all writes of a frontend that does not
    fit, or whose address, backend, member or reverse entry does not fit. Also the deletes of these entries that such a
    frontend, in its old state, still uses."""

    def __init__(self, held: Mapping[str, Mapping[Any, Any]]) -> None:
        self._held = held
        self._begun = False
        self._frontends: set[FrontendKey] = set()
        # (table, number or address) -> the frontends whose writes refer to it.
        self._users: dict[tuple[str, Any], set[FrontendKey]] = defaultdict(set)
        self._used: dict[str, set[Any]] | None = None

    def begin(self, writes: Iterable[Write]) -> None:
        if self._begun:
            return
        self._begun = True
        for write in writes:
            if write.table == "nn_frontend" and write.value is not None:
                master = _master(write)
                self._users["nn_member", write.value.service_id].add(master)
                self._users["nn_source_range", write.value.service_id].add(master)
                self._users["nn_service_addr", master.addr].add(master)
                if write.key.slot:
                    self._users["nn_backend", write.value.backend_id].add(master)
                else:
                    self._users["nn_revnat", write.value.service_id].add(master)

    def left_out(self, write: Write) -> None:
        if write.table == "nn_frontend":
            self._frontends.add(_master(write))
        elif write.table in ("nn_backend", "nn_revnat", "nn_service_addr", "nn_source_range"):
            self._frontends |= self._users[write.table, _reference(write.key)]
        elif write.table == "nn_member":
            self._frontends |= self._users[write.table, write.key.service_id & ~MEMBER_AFFINITY]

    def has(self, write: Write) -> bool:
        if write.table == "nn_frontend":
            return _master(write) in self._frontends
        if write.table == "nn_source_range":
            # A frontend that was written must lose the ranges that it does not have any more.
            return write.is_delete and write.key.service_id in self._services_left_out()
        if write.table in _BEHIND_FRONTENDS:
            return write.is_delete and _reference(write.key) in self._still_used()[write.table]
        return False

    def _services_left_out(self) -> set[int]:
        entries = (self._held["nn_frontend"].get(master) for master in self._frontends)
        return {entry.service_id for entry in entries if entry is not None}

    def _still_used(self) -> dict[str, set[Any]]:
        """The keys that frontends still use, by table. Call it only after all writes of frontends."""
        if self._used is None:
            self._used = _used(self._held)
        return self._used


def _used(held: Mapping[str, Mapping[Any, Any]]) -> dict[str, set[Any]]:
    """The keys to which frontends refer, by table."""
    entries = held.get("nn_frontend", {})
    return {
        "nn_backend": {entry.backend_id for key, entry in entries.items() if key.slot},
        "nn_member": {MemberKey(entry.service_id, entry.backend_id) for key, entry in entries.items() if key.slot},
        "nn_revnat": {entry.service_id for key, entry in entries.items() if not key.slot},
        "nn_service_addr": {key.addr for key in entries},
        "nn_source_range": {entry.service_id for key, entry in entries.items() if not key.slot},
    }


def _reference(key: Any) -> Any:
    """A key of a map behind frontends in the form in which `_used` has it."""
    if isinstance(key, MemberKey):
        return key
    if isinstance(key, SourceRangeKey):
        return key.service_id
    return key.addr if isinstance(key, AddressKey) else key.value


def _master(write: Write) -> FrontendKey:
    """Both scopes of a frontend are one."""
    key: FrontendKey = write.key
    return key._replace(slot=0, scope=0)
