"""Carries out a plan, write by write, on anything that looks like a map.

A map without room ends nothing: what does not fit is left out with what depends on it, the rest is made, and the end
tells. A Service is left as it was, whole; of policy allows are left out, never what isolates or narrows.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Protocol

from nodenet.abi import FrontendKey, MemberKey
from nodenet.errors import NodenetError, TableFullError
from nodenet.reconcile.plan import Write


class Table(Protocol):
    """One map of the kernel, in its records (nodenet.tables). Every method raises OSError or NodenetError when it
    fails."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Every entry, each once, as far as the map did not change meanwhile."""
        ...

    def update(self, key: Any, value: Any) -> None:
        """Insert or replace. No room: TableFullError, or OSError with E2BIG or ENOSPC."""
        ...

    def delete(self, key: Any) -> None:
        """Remove. A key that is not there is no error: it is gone, which is what was asked for."""
        ...


class ApplyError(NodenetError):
    """A write, or the reading of a table, failed. `write` is None for a reading. `left` are the writes that were not
    made."""

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
    """Everything was made but for what has no room. `table` and `write` are the first such; `left` has all, those that
    depend on others included."""

    def __init__(self, first: ApplyError, left: tuple[Write, ...]) -> None:
        counts = Counter(write.table for write in left)
        others = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        super().__init__(first.table, f"{first} (writes left out: {others})", None, first.write, left)


def read(tables: Mapping[str, Table], names: Iterable[str]) -> dict[str, dict[Any, Any]]:
    """What the named maps hold now. Raises ApplyError that names the table."""
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
    """Make the writes in their order; `held` follows and `done` counts them by table, each as soon as it is made.

    Raises ApplyError that names table and key at the first that fails, since those after it may depend on it; FullError
    at the end when some had no room. `held` has every table of the group; those that are written are changed in place.
    """
    writes = list(writes)
    first: ApplyError | None = None
    dependants = _Dependants(held)
    early = _EarlyDeletes(writes, held)
    left: list[Write] = []
    for place, write in enumerate(writes):
        if early.has(write):
            continue
        if first is not None and dependants.has(write):
            left.append(write)
            continue
        try:
            try:
                _make(write, tables, held, done)
            except (OSError, NodenetError) as error:
                deletes = early.take(write) if _is_full(error) else []
                if not deletes:
                    raise
                for one in (*deletes, write):
                    _make(one, tables, held, done)
        except (OSError, NodenetError) as error:
            if not _is_full(error):
                rest = tuple(one for one in writes[place:] if not early.has(one))
                raise ApplyError(write.table, str(write), error, write, (*left, *rest)) from error
            first = first or ApplyError(write.table, str(write), error, write)
            dependants.begin(writes)
            dependants.left_out(write)
            left.append(write)
    if first is not None:
        raise FullError(first, tuple(left)) from first


def _make(
    write: Write, tables: Mapping[str, Table], held: Mapping[str, MutableMapping[Any, Any]], done: Counter[str]
) -> None:
    if write.is_delete:
        tables[write.table].delete(write.key)
        held[write.table].pop(write.key, None)
    else:
        tables[write.table].update(write.key, write.value)
        held[write.table][write.key] = write.value
    done[write.table] += 1


def _is_full(error: BaseException) -> bool:
    return isinstance(error, TableFullError) or (
        isinstance(error, OSError) and error.errno in (errno.E2BIG, errno.ENOSPC)
    )


class _EarlyDeletes:
    """Deletes that are safe before their turn, for a write that found no room.

    What no frontend refers to has no user. An address in nn_ipcache counts as the world without its entry, and without
    an entry in nn_policy an allow is missing: both may be deleted for a moment. This matters because a full LPM map of
    kernels before 6.13 refuses to replace a value too: an address would keep its old identity, and what that may do.
    """

    def __init__(self, writes: list[Write], held: Mapping[str, Mapping[Any, Any]]) -> None:
        self._writes = writes
        self._held = held
        self._made: set[tuple[str, Any]] = set()
        self._looked: set[str] = set()

    def has(self, write: Write) -> bool:
        """Whether this delete was taken."""
        return bool(self._made) and write.is_delete and (write.table, write.key) in self._made

    def take(self, write: Write) -> list[Write]:
        """The caller makes these deletes, then the write again. For Services only once a table: nothing gets free
        before the frontends are written."""
        if write.table in ("nn_ipcache", "nn_policy"):
            return [Write(write.table, write.key)] if write.key in self._held[write.table] else []
        if write.table not in ("nn_backend", "nn_member", "nn_revnat") or write.table in self._looked:
            return []
        self._looked.add(write.table)
        used = _used(self._held)[write.table]
        found = [w for w in self._writes if w.is_delete and w.table == write.table and _reference(w.key) not in used]
        self._made.update((one.table, one.key) for one in found)
        return found


class _Dependants:
    """Which of the writes to come must not be made, after some had no room.

    Services: every write of a frontend that has no room or whose backend, member or reverse entry has none, and the
    deletes of backends, members and reverse entries that a frontend left as it was still uses.

    Policy: regions come most specific first,
    and one that is missing would leave its addresses to a wider one: no region is written or deleted after it. Allows
    are independent of each other, and nothing that narrows depends on one.
    """

    def __init__(self, held: Mapping[str, Mapping[Any, Any]]) -> None:
        self._held = held
        self._begun = False
        self._regions = False
        self._frontends: set[FrontendKey] = set()
        # Frontends by what their writes refer to.
        self._users: dict[tuple[str, int], set[FrontendKey]] = defaultdict(set)
        self._used: dict[str, set[Any]] | None = None

    def begin(self, writes: Iterable[Write]) -> None:
        if self._begun:
            return
        self._begun = True
        for write in writes:
            if write.table == "nn_frontend" and write.value is not None:
                master = _master(write)
                self._users["nn_member", write.value.service_id].add(master)
                if write.key.slot:
                    self._users["nn_backend", write.value.backend_id].add(master)
                else:
                    self._users["nn_revnat", write.value.service_id].add(master)

    def left_out(self, write: Write) -> None:
        if write.table == "nn_frontend":
            self._frontends.add(_master(write))
        elif write.table in ("nn_backend", "nn_revnat"):
            self._frontends |= self._users[write.table, write.key.value]
        elif write.table == "nn_member":
            self._frontends |= self._users[write.table, write.key.service_id]
        elif write.table == "nn_cidr":
            self._regions = True

    def has(self, write: Write) -> bool:
        if write.table == "nn_frontend":
            return _master(write) in self._frontends
        if write.table in ("nn_backend", "nn_revnat", "nn_member"):
            return write.is_delete and _reference(write.key) in self._still_used()[write.table]
        return write.table == "nn_cidr" and self._regions

    def _still_used(self) -> dict[str, set[Any]]:
        """Asked for when every frontend has been written that will be."""
        if self._used is None:
            self._used = _used(self._held)
        return self._used


def _used(held: Mapping[str, Mapping[Any, Any]]) -> dict[str, set[Any]]:
    """What the frontends refer to, by table."""
    entries = held.get("nn_frontend", {})
    return {
        "nn_backend": {entry.backend_id for key, entry in entries.items() if key.slot},
        "nn_member": {MemberKey(entry.service_id, entry.backend_id) for key, entry in entries.items() if key.slot},
        "nn_revnat": {entry.service_id for key, entry in entries.items() if not key.slot},
    }


def _reference(key: Any) -> Any:
    """A key of nn_backend, nn_member or nn_revnat as frontends refer to it."""
    return key if isinstance(key, MemberKey) else key.value


def _master(write: Write) -> FrontendKey:
    key: FrontendKey = write.key
    return key._replace(slot=0)
