"""Plans a change of policy as entries with two versions, and one write that brings all of them into force.

Every entry of the change gets what was in force before it (`was`), what is in force after it (`now`), and the number of
the change (`since`). A program reads the generation of nn_state once per packet and uses `now` if the change is part of
that generation, else `was`. So the order of the entries does not matter, and a change that is not finished is not in
force (docs/decisions/0039). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple, cast

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
from nodenet.reconcile.plan import Table, Tables, Write, differing, replaced
from nodenet.tables import KEYED, MAPS, Group, MapType, Step, Writer, filled_by, members, steps

POLICY_TABLES = members(Group.POLICY)
# The tables whose values have two versions.
SWITCHED = tuple(name for name in POLICY_TABLES if name in filled_by(Writer.COMPILER))
STATE_KEY = U32(0)

# The record types of their values.
VERSIONS: Mapping[str, type[Versions]] = {name: cast("type[Versions]", KEYED[name].value) for name in SWITCHED}
TRIES = frozenset(name for name in SWITCHED if MAPS[name].type is MapType.LPM_TRIE)
_ORDER = steps(Group.POLICY)
_GENERATIONS = 1 << 32
# Once in so many generations all entries are written again, so that none is older than half of all generations: the
# programs could not tell its age.
_REFRESH = 1 << 30


class Entry(NamedTuple):
    """One entry of a change. `value`: what the entry shall have, None if it goes. `now` and `was`: what a lookup of the
    key shall give after the change, and gives before it. They differ from `value` and the value before if a shorter
    prefix covers the key."""

    table: str
    key: Any
    value: Any | None
    now: Any | None
    was: Any | None

    @property
    def write(self) -> Write:
        return Write(self.table, self.key, self.value)

    def record(self, since: int) -> Record:
        """The value to write into the map."""
        return VERSIONS[self.table].of(self.now, self.was, since)


@dataclass(frozen=True, slots=True)
class Change:
    """A planned change. `entries` are written first, then `state`; entries that go are deleted last, when no program
    uses the previous generation any more. `state` None: one entry, which is in force when it is written. `lengths`: the
    prefix lengths that may occur in each table with prefixes, before or after."""

    entries: Sequence[Entry]
    since: int
    state: State | None
    lengths: Mapping[str, set[int]]

    @property
    def writes(self) -> list[Write]:
        return [entry.write for entry in self.entries]


Differing = Mapping[str, list[tuple[Any, Any, Any]]]


def plan_policy(desired: Tables, actual: Tables, lengths: Mapping[str, Collection[int]] | None = None) -> Change | None:
    """The change from what is in force to the desired content; None if there is none. Missing tables count as empty.

    `lengths`: the prefix lengths that may occur in each table of `actual`; by default they are looked up.
    """
    if not replaced(SWITCHED, desired, actual):
        return None
    wanted = {name: desired.get(name, {}) for name in SWITCHED}
    held = {name: actual.get(name, {}) for name in SWITCHED}
    changed = {name: differing(wanted[name], held[name]) for name in SWITCHED}
    number = sum(map(len, changed.values()))
    if not number:
        return None
    known = lengths or {name: prefix_lengths(held[name]) for name in TRIES}
    covers = {name: {*known[name], *{key.prefixlen for key, _, _ in changed[name]}} for name in TRIES}
    state = actual.get("nn_state", {}).get(STATE_KEY, State(0, 0))
    since = (state.generation + 1) % _GENERATIONS
    refresh = since % _REFRESH == 0
    recheck = refresh or _changes_verdicts(changed, held)
    if number == 1 and not recheck:
        ((name, ((key, value, _),)),) = ((name, found) for name, found in changed.items() if found)
        if value is not None:
            # One write is atomic on its own.
            return Change((Entry(name, key, value, value, value),), state.generation, None, covers)
    entries = [
        entry
        for step in _ORDER
        for entry in _entries(step, changed[step.table], wanted[step.table], held[step.table], covers)
    ]
    if refresh:
        entries += _unchanged(wanted, held)
    return Change(entries, since, State(since, since if recheck else state.recheck_from), covers)


def _entries(
    step: Step, changed: list[tuple[Any, Any, Any]], wanted: Table, held: Table, lengths: Mapping[str, Collection[int]]
) -> list[Entry]:
    """The entries of one table that are set, or those that go."""
    name = step.table
    if step.deletes:
        gone = [(key, old) for key, value, old in changed if value is None]
        if name not in TRIES or not wanted:
            return [Entry(name, key, None, None, old) for key, old in gone]
        return [Entry(name, key, None, covering(key, wanted, lengths[name]), old) for key, old in gone]
    if name not in TRIES or not held:
        return [Entry(name, key, value, value, old) for key, value, old in changed if value is not None]
    return [
        Entry(name, key, value, value, old if old is not None else covering(key, held, lengths[name]))
        for key, value, old in changed
        if value is not None
    ]


def _unchanged(wanted: Tables, held: Tables) -> Iterable[Entry]:
    return (
        Entry(name, key, value, value, value)
        for name in SWITCHED
        for key, value in wanted[name].items()
        if held[name].get(key) == value
    )


def _changes_verdicts(changed: Differing, held: Tables) -> bool:
    """True if the verdict for an existing flow may be different after this change.

    A new address or endpoint had no flows with its own identity, and entries of a subject without an endpoint concern
    no flow. An address that goes or changes may leave flows behind, which its next owner must not inherit.
    """
    if changed["nn_cidr"]:
        return True
    if any(old is not None and not _same_policy(old, new) for _, new, old in changed["nn_endpoint"]):
        return True
    if any(old is not None for _, _, old in changed["nn_ipcache"]):
        return True
    subjects = {entry.identity for entry in held["nn_endpoint"].values()} if changed["nn_policy"] else set()
    return bool(subjects) and any(key.subject in subjects for key, _, _ in changed["nn_policy"])


def _same_policy(old: EndpointEntry, new: EndpointEntry | None) -> bool:
    return new is not None and (old.identity, old.flags) == (new.identity, new.flags)


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
