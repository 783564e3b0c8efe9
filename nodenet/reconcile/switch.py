"""Plans a change of policy as entries with two versions, and one write that brings all of them into force.

Every entry of the change gets what was in force before it (`was`), what is in force after it (`now`), and the number of
the change (`since`). A program reads the generation of nn_state once per packet and uses `now` if the change is part of
that generation, else `was`. So the order of the entries does not matter, and a change that is not finished is not in
force (docs/decisions/0039). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from nodenet.abi import (
    POLICY_BITS_PROTOCOL,
    U32,
    V4_PREFIX_BITS,
    EndpointEntry,
    LpmKey,
    PolicyKey,
    Record,
    State,
    Versions,
    pack_addr,
)
from nodenet.reconcile.plan import Table, Tables, Write, sets_and_deletes
from nodenet.tables import KEYED, MAPS, Group, MapType, Writer, filled_by, members, steps

POLICY_TABLES = members(Group.POLICY)
# The tables whose values have two versions.
SWITCHED = tuple(name for name in POLICY_TABLES if name in filled_by(Writer.COMPILER))
STATE_KEY = U32(0)

TRIES = frozenset(name for name in SWITCHED if MAPS[name].type is MapType.LPM_TRIE)
_ORDER = steps(Group.POLICY)
_GENERATIONS = 1 << 32
# Once in so many generations all entries are written again, so that none is older than half of all generations: the
# programs could not tell its age.
_REFRESH = 1 << 30


class Entry(NamedTuple):
    """One entry of a change. `write` has the value that the entry shall have, None if it goes. `now` and `was`: what a
    lookup of the key shall give after the change, and gives before it. They differ from `write` if a shorter prefix
    covers the key."""

    write: Write
    now: Any | None
    was: Any | None

    def record(self, since: int) -> Record:
        """The value to write into the map."""
        return versions(self.write.table).of(self.now, self.was, since)


@dataclass(frozen=True, slots=True)
class Change:
    """A planned change. `entries` are written first, then `state`; entries that go are deleted last, when no program
    uses the previous generation any more. `state` None: one entry, which is in force when it is written."""

    entries: tuple[Entry, ...]
    since: int
    state: State | None

    @property
    def writes(self) -> Iterable[Write]:
        return (entry.write for entry in self.entries)


def versions(table: str) -> type[Versions]:
    """The record type of the values of a table in SWITCHED."""
    found: type[Any] = KEYED[table].value
    return found


def plan_policy(desired: Tables, actual: Tables, lengths: Mapping[str, Collection[int]] | None = None) -> Change | None:
    """The change from what is in force to the desired content; None if there is none. Missing tables count as empty.

    `lengths`: the prefix lengths that may occur in each table of `actual`; by default they are looked up.
    """
    wanted = {name: desired.get(name, {}) for name in SWITCHED}
    held = {name: actual.get(name, {}) for name in SWITCHED}
    if all(wanted[name] is held[name] for name in SWITCHED):
        return None
    sets, deletes = sets_and_deletes(SWITCHED, wanted, held)
    writes = [write for step in _ORDER for write in (deletes if step.deletes else sets)[step.table]]
    if not writes:
        return None
    state = actual.get("nn_state", {}).get(STATE_KEY, State(0, 0))
    since = (state.generation + 1) % _GENERATIONS
    refresh = since % _REFRESH == 0
    recheck = refresh or changes_verdicts(writes, held)
    if len(writes) == 1 and not writes[0].is_delete and not recheck:
        # One write is atomic on its own.
        value = writes[0].value
        return Change((Entry(writes[0], value, value),), state.generation, None)
    known = lengths or {name: prefix_lengths(held[name]) for name in TRIES}
    covers = {name: {*known[name], *(write.key.prefixlen for write in sets[name])} for name in TRIES}
    entries = [_entry(write, wanted, held, covers) for write in writes]
    if refresh:
        entries += _unchanged(wanted, held)
    return Change(tuple(entries), since, State(since, since if recheck else state.recheck_from))


def _entry(write: Write, wanted: Tables, held: Tables, lengths: Mapping[str, Collection[int]]) -> Entry:
    name, key, now = write
    was = held[name].get(key)
    if name in TRIES:
        if was is None and held[name]:
            was = covering(key, held[name], lengths[name])
        if now is None and wanted[name]:
            now = covering(key, wanted[name], lengths[name])
    return Entry(write, now, was)


def _unchanged(wanted: Tables, held: Tables) -> Iterable[Entry]:
    return (
        Entry(Write(name, key, value), value, value)
        for name in SWITCHED
        for key, value in wanted[name].items()
        if held[name].get(key) == value
    )


def changes_verdicts(writes: Iterable[Write], held: Tables) -> bool:
    """True if the verdict for an existing flow may be different after these writes.

    A new address or endpoint had no flows with its own identity, and entries of a subject without an endpoint concern
    no flow. An address that goes or changes may leave flows behind, which its next owner must not inherit.
    """
    subjects: set[int] | None = None
    for write in writes:
        if write.table == "nn_cidr":
            return True
        if write.table == "nn_policy":
            if subjects is None:
                subjects = {entry.identity for entry in held["nn_endpoint"].values()}
            if write.key.subject in subjects:
                return True
        elif (old := held[write.table].get(write.key)) is not None and not _same_policy(old, write.value):
            return True
    return False


def _same_policy(old: Any, new: Any) -> bool:
    if isinstance(old, EndpointEntry) and isinstance(new, EndpointEntry):
        return (old.identity, old.flags) == (new.identity, new.flags)
    return False


def prefix_lengths(table: Table) -> set[int]:
    return {key.prefixlen for key in table}


def covering(key: Any, table: Table, lengths: Collection[int]) -> Any | None:
    """The value that a lookup of `key` gives in an LPM table that does not have the key itself: that of the longest
    prefix that contains it. `lengths`: all prefix lengths that may occur in the table."""
    for length in sorted((length for length in lengths if length < key.prefixlen), reverse=True):
        value = table.get(_cut(key, length))
        if value is not None:
            return value
    return None


def _cut(key: Any, length: int) -> Any:
    """The prefix of a key."""
    if isinstance(key, PolicyKey):
        bits = length - POLICY_BITS_PROTOCOL
        if bits < 0:
            return key._replace(prefixlen=length, protocol=0, port=0)
        return key._replace(prefixlen=length, port=key.port >> (16 - bits) << (16 - bits))
    number = int.from_bytes(pack_addr(key.addr), "big") >> (128 - length) << (128 - length)
    # In keys, IPv4 is shown as such from the 96 bits of ::ffff: on.
    if key.addr.version == 4 and length >= V4_PREFIX_BITS:
        return LpmKey(length, IPv4Address(number & 0xFFFFFFFF))
    return LpmKey(length, IPv6Address(number))
