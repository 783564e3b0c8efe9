"""What follows from an entry of Services that does not fit: the writes that must not be made, and the deletes that may
be made earlier than planned. Pure.

A frontend that does not fit, or that refers to an entry that does not fit, keeps its old state with all entries behind
it. Source ranges are different: a range that does not fit only refuses its sources, and a frontend in its old state
still admits no source that the new state refuses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from nodenet.abi import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    AddressKey,
    FrontendEntry,
    FrontendFlag,
    FrontendKey,
    FrontendScope,
    MemberKey,
    SourceRangeKey,
)
from nodenet.reconcile.plan import Write

# The tables to which frontends refer.
_BEHIND_FRONTENDS = ("nn_service_addr", "nn_backend", "nn_member", "nn_revnat", "nn_source_range")


class EarlyDeletes:
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


class Dependants:
    """Finds the later writes that must not be made after an entry did not fit: all writes of a frontend that does not
    fit, or whose address, backend, member or reverse entry does not fit. Also the deletes of these entries that such a
    frontend, in its old state, still uses."""

    def __init__(self, held: Mapping[str, Mapping[Any, Any]]) -> None:
        self._held = held
        self._begun = False
        self._frontends: set[FrontendKey] = set()
        # (table, number or address) -> the frontends whose writes refer to it.
        self._users: dict[tuple[str, Any], set[FrontendKey]] = defaultdict(set)
        # Frontends whose new master entry has no source ranges.
        self._for_all: set[FrontendKey] = set()
        self._used: dict[str, set[Any]] | None = None

    def begin(self, writes: Iterable[Write]) -> None:
        if self._begun:
            return
        self._begun = True
        for write in writes:
            if write.table == "nn_frontend" and write.value is not None:
                master = _master(write)
                self._users["nn_member", write.value.service_id].add(master)
                self._users["nn_service_addr", master.addr].add(master)
                if write.key.slot:
                    self._users["nn_backend", write.value.backend_id].add(master)
                    continue
                self._users["nn_revnat", write.value.service_id].add(master)
                # A frontend may be closed before it is changed: its last write counts.
                is_for_all = not write.value.flags & FrontendFlag.SOURCE_RANGES
                (self._for_all.add if is_for_all else self._for_all.discard)(master)

    def left_out(self, write: Write) -> None:
        if write.table == "nn_frontend":
            self._frontends.add(_master(write))
        elif write.table in ("nn_backend", "nn_revnat", "nn_service_addr"):
            self._frontends |= self._users[write.table, _reference(write.key)]
        elif write.table == "nn_member":
            self._frontends |= self._users[write.table, _service(write.key)]

    def has(self, write: Write) -> bool:
        if write.table == "nn_frontend":
            return _master(write) in self._frontends
        if write.table not in _BEHIND_FRONTENDS or not write.is_delete:
            return False
        still = self._still_used()[write.table]
        # The whole Service keeps its members: those of affinity and of terminating backends are in no slot.
        key = _service(write.key) if write.table == "nn_member" else _reference(write.key)
        return key in still

    def restricted(self, write: Write) -> Write | None:
        """The write to make in place of this one, which `has` has: the old entry, for no source that the new one
        refuses. It needs no room. None: the old entry stays."""
        old: FrontendEntry | None = self._held["nn_frontend"].get(write.key)
        if write.table != "nn_frontend" or write.key.slot or write.value is None or old is None:
            return None
        if not write.value.flags & FrontendFlag.SOURCE_RANGES:
            return None
        flags = old.flags & ~FrontendFlag.ALLOWS_NODE | FrontendFlag.SOURCE_RANGES
        flags |= write.value.flags & FrontendFlag.ALLOWS_NODE
        return Write(write.table, write.key, old._replace(flags=int(flags)))

    def _still_used(self) -> dict[str, set[Any]]:
        """The keys that frontends still use, by table. Call it only after all writes of frontends."""
        if self._used is None:
            self._used = {
                **_used(self._held),
                "nn_member": self._services(self._frontends),
                # Ranges that the new state does not have may go, unless it has none and the old one needs them.
                "nn_source_range": self._services(self._frontends & self._for_all),
            }
        return self._used

    def _services(self, masters: Iterable[FrontendKey]) -> set[int]:
        entries = (self._held["nn_frontend"].get(master) for master in masters)
        return {entry.service_id for entry in entries if entry is not None}


def _used(held: Mapping[str, Mapping[Any, Any]]) -> dict[str, set[Any]]:
    """The keys to which frontends refer, by table."""
    entries = held.get("nn_frontend", {})
    return {
        "nn_backend": {entry.backend_id for key, entry in entries.items() if key.slot},
        "nn_member": {member for key, entry in entries.items() if key.slot for member in _members(key, entry)},
        "nn_revnat": {entry.service_id for key, entry in entries.items() if not key.slot},
        "nn_service_addr": {key.addr for key in entries},
        "nn_source_range": {entry.service_id for key, entry in entries.items() if not key.slot},
    }


def _members(key: FrontendKey, entry: FrontendEntry) -> tuple[MemberKey, MemberKey]:
    """The members that the backend of a slot may have: of a UDP Service, and of one with session affinity."""
    number = entry.backend_id | (MEMBER_EXTERNAL if key.scope == FrontendScope.EXTERNAL else 0)
    return MemberKey(entry.service_id, entry.backend_id), MemberKey(entry.service_id | MEMBER_AFFINITY, number)


def _service(key: MemberKey) -> int:
    return key.service_id & ~MEMBER_AFFINITY


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
