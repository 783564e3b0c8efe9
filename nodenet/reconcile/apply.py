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
    """A write, or the reading of a table, failed. `write` is None for a reading."""

    def __init__(self, table: str, action: str, cause: BaseException | None, write: Write | None = None) -> None:
        super().__init__(
            f"{action}: {cause}" if cause else action,
            "the agent tries again by itself; see `nodenet map list` for full maps",
        )
        self.table = table
        self.write = write


class FullError(ApplyError):
    """Everything was made but for what has no room. `table` and `write` are the first such; `left_out` counts writes by
    table, those that depend on others included."""

    def __init__(self, first: ApplyError, left_out: Counter[str]) -> None:
        others = ", ".join(f"{name} {count}" for name, count in sorted(left_out.items()))
        super().__init__(first.table, f"{first} (writes left out: {others})", None, first.write)
        self.left_out = left_out


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
    left_out: Counter[str] = Counter()
    for write in writes:
        if first is not None and dependants.has(write):
            left_out[write.table] += 1
            continue
        try:
            _make(write, tables[write.table])
        except (OSError, NodenetError) as error:
            failed = ApplyError(write.table, str(write), error, write)
            if not _is_full(error):
                raise failed from error
            first = first or failed
            dependants.begin(writes)
            dependants.left_out(write)
            left_out[write.table] += 1
            continue
        if write.is_delete:
            held[write.table].pop(write.key, None)
        else:
            held[write.table][write.key] = write.value
        done[write.table] += 1
    if first is not None:
        raise FullError(first, left_out) from first


def _make(write: Write, table: Table) -> None:
    if write.is_delete:
        table.delete(write.key)
    else:
        table.update(write.key, write.value)


def _is_full(error: BaseException) -> bool:
    return isinstance(error, TableFullError) or (
        isinstance(error, OSError) and error.errno in (errno.E2BIG, errno.ENOSPC)
    )


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
        if write.table in ("nn_backend", "nn_revnat"):
            return write.is_delete and write.key.value in self._still_used()[write.table]
        if write.table == "nn_member":
            return write.is_delete and write.key in self._still_used()[write.table]
        return write.table == "nn_cidr" and self._regions

    def _still_used(self) -> dict[str, set[Any]]:
        """Asked for when every frontend has been written that will be."""
        if self._used is None:
            entries = self._held.get("nn_frontend", {})
            self._used = {
                "nn_backend": {entry.backend_id for key, entry in entries.items() if key.slot},
                "nn_member": {
                    MemberKey(entry.service_id, entry.backend_id) for key, entry in entries.items() if key.slot
                },
                "nn_revnat": {entry.service_id for key, entry in entries.items() if not key.slot},
            }
        return self._used


def _master(write: Write) -> FrontendKey:
    key: FrontendKey = write.key
    return key._replace(slot=0)
