"""Plans the writes from the actual to the desired content of the maps. Their order keeps the maps consistent after
every single write.

Services: at any time, slots 1..count of a frontend point to existing backends, which belong to the old or the new set.
A backend in a slot of a UDP Service is always a member of that Service.

Policy: if the old and the new state agree on a packet of an endpoint and direction, the intermediate states decide the
same. docs/decisions/0002 has the limit of this: several identities that change at once. For these,
nodenet.reconcile.bridges avoids most drops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nodenet.abi import U32, EndpointEntry, FrontendEntry, FrontendKey, LpmKey, State
from nodenet.evolved import Evolved
from nodenet.reconcile.bridges import bridges
from nodenet.tables import Group, Writer, filled_by, members, steps

Table = Mapping[Any, Any]
Tables = Mapping[str, Table]

SERVICE_TABLES = members(Group.SERVICES)
# The tables to which frontends refer.
_BEHIND_FRONTENDS = tuple(name for name in SERVICE_TABLES if name != "nn_frontend")
POLICY_TABLES = members(Group.POLICY)
# Without nn_state, because its revision follows from the other writes.
_COMPILED_POLICY = tuple(name for name in POLICY_TABLES if name in filled_by(Writer.COMPILER))

_ORDER = {group: steps(group) for group in Group}

STATE_KEY = U32(0)


class Write(NamedTuple):
    """One write of one map entry. `value` None deletes the key."""

    table: str
    key: Any
    value: Any | None = None

    @property
    def is_delete(self) -> bool:
        return self.value is None

    def __str__(self) -> str:
        return f"{self.table}: delete {self.key}" if self.is_delete else f"{self.table}: set {self.key} to {self.value}"


def plan(desired: Tables, actual: Tables) -> list[Write]:
    """All writes, Services first. Missing tables count as empty."""
    return [*plan_services(desired, actual), *plan_policy(desired, actual)]


def plan_services(desired: Tables, actual: Tables) -> list[Write]:
    """The writes of Services, in this order: delete frontends, add backends, members, revnat and addresses, change
    frontends, delete members, backends, revnat and addresses. So the unserved ports of an address are refused as long
    as it has a frontend."""
    wanted = {name: desired.get(name, {}) for name in SERVICE_TABLES}
    held = {name: actual.get(name, {}) for name in SERVICE_TABLES}
    if all(wanted[name] is held[name] for name in SERVICE_TABLES):
        return []
    sets, deletes = _differences(_BEHIND_FRONTENDS, wanted, held)
    renumbered = {write.key.value for write in sets["nn_backend"] if write.key in held["nn_backend"]}
    closed = _close_renumbered(renumbered, held["nn_frontend"])
    # The next steps start from the closed master entries.
    frontends = {**held["nn_frontend"], **{w.key: w.value for w in closed}} if closed else held["nn_frontend"]
    gone, changed = _frontends(wanted["nn_frontend"], frontends)
    sets["nn_frontend"], deletes["nn_frontend"] = changed, [*closed, *gone]
    return _in_order(Group.SERVICES, sets, deletes)


def plan_policy(desired: Tables, actual: Tables) -> list[Write]:
    """The writes of policy, in this order: add allows and end isolation, change regions, delete endpoints and addresses
    (which makes room), change addresses and endpoints, delete allows.

    So everything that widens comes before everything that narrows, and an endpoint that becomes isolated has its allows
    already. The end of an isolation widens too: it must not wait until the regions of old allows are deleted. Regions
    are added most specific first and deleted in the reverse order (see netpolicy.regions). The revision is odd while
    established flows may be checked against a mixture of states. They are checked again afterwards.
    """
    wanted = {name: desired.get(name, {}) for name in _COMPILED_POLICY}
    held = {name: actual.get(name, {}) for name in _COMPILED_POLICY}
    if all(wanted[name] is held[name] for name in _COMPILED_POLICY):
        return _with_revision([], False, actual)
    upserts, deletes = _differences(_COMPILED_POLICY, wanted, held)
    upserts["nn_cidr"].sort(key=_most_specific_first)
    deletes["nn_cidr"].sort(key=_most_specific_first, reverse=True)
    widened = list(_ends_of_isolation(upserts["nn_endpoint"], held["nn_endpoint"]))
    switched = [[write.key for write in upserts[name]] for name in ("nn_endpoint", "nn_ipcache")]
    # An endpoint for which only isolation ends needs no further write.
    upserts["nn_endpoint"] = [write for write in upserts["nn_endpoint"] if write not in widened]
    # Put the temporary allows after the permanent ones, which must come first if the map is nearly full.
    bridging = bridges(wanted, held, *switched)
    upserts["nn_policy"] += [Write("nn_policy", key, value) for key, value in bridging.items()]
    upserts["nn_policy"] += widened
    deletes["nn_policy"] += [Write("nn_policy", key) for key in bridging]
    writes = _in_order(Group.POLICY, upserts, deletes)
    return _with_revision(writes, any(_changes_verdicts(write, held) for write in writes), actual)


def _in_order(group: Group, sets: Mapping[str, list[Write]], deletes: Mapping[str, list[Write]]) -> list[Write]:
    """The writes in the order that the declarations of the maps give (nodenet.tables)."""
    return [write for step in _ORDER[group] for write in (deletes if step.deletes else sets)[step.table]]


def _ends_of_isolation(upserts: Iterable[Write], held: Table) -> Iterator[Write]:
    """Writes that only end the isolation of endpoints; all other fields keep their current values."""
    for write in upserts:
        old = held.get(write.key)
        if old is not None and isinstance(write.value, EndpointEntry) and old.flags & ~write.value.flags:
            yield write._replace(value=old._replace(flags=old.flags & write.value.flags))


def differences(one: Table, other: Table) -> int:
    """The number of keys that are in only one of the tables or have different values."""
    common = sum(1 for key, value in one.items() if key in other and other[key] != value)
    return common + len(one.keys() - other.keys()) + len(other.keys() - one.keys())


def _with_revision(writes: list[Write], bump: bool, actual: Tables) -> list[Write]:
    """Put a write of an odd revision before the writes and one of an even revision after them. If a crash has left an
    odd revision, only the even one is written."""
    state = actual.get("nn_state", {}).get(STATE_KEY, State(0))
    odd = state.policy_revision % 2
    if not bump and not odd:
        return writes
    first = [] if odd else [_revision(state, 1)]
    return [*first, *writes, _revision(state, 1 if odd else 2)]


def _revision(state: State, step: int) -> Write:
    return Write("nn_state", STATE_KEY, State((state.policy_revision + step) & 0xFFFFFFFF))


def _changes_verdicts(write: Write, held: Mapping[str, Table]) -> bool:
    """True if the verdict for an existing flow may be different after this write.

    A new address or endpoint had no flows with its own identity. One that is deleted or changed may leave flows behind,
    which the next owner of the address must not inherit.
    """
    if write.table in ("nn_policy", "nn_cidr"):
        return True
    old = held[write.table].get(write.key)
    if old is None:
        return False
    if isinstance(old, EndpointEntry) and isinstance(write.value, EndpointEntry):
        return (old.identity, old.flags) != (write.value.identity, write.value.flags)
    return True


def _most_specific_first(write: Write) -> int:
    key: LpmKey = write.key
    return -key.prefixlen


def _differences(
    names: Iterable[str], wanted: Tables, held: Tables
) -> tuple[dict[str, list[Write]], dict[str, list[Write]]]:
    """(sets, deletes), each by table."""
    found = {name: _difference(name, wanted[name], held[name]) for name in names}
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def _difference(name: str, wanted: Table, held: Table) -> tuple[list[Write], list[Write]]:
    """(sets, deletes) of one table."""
    if wanted is held:
        return [], []
    known = wanted.changed_since(held) if isinstance(wanted, Evolved) else None
    if known is None:
        sets = [Write(name, key, value) for key, value in wanted.items() if held.get(key) != value]
        return sets, [Write(name, key) for key in held if key not in wanted]
    # Hashing addresses is the expensive part, so look up each key only once in each table.
    pairs = [(key, wanted.get(key), held.get(key)) for key in known]
    return (
        [Write(name, key, value) for key, value, old in pairs if value is not None and value != old],
        [Write(name, key) for key, value, old in pairs if value is None and old is not None],
    )


def _close_renumbered(changed: set[int], frontends: Table) -> list[Write]:
    """Close frontends that use a backend_id whose meaning changes, so that they refuse connections for a moment instead
    of leading to a wrong backend.

    The compiler never changes the meaning of a number. This happens only if another program changed the map or a part
    of it was lost.
    """
    if not changed:
        return []
    users = {key._replace(slot=0) for key, value in frontends.items() if key.slot and value.backend_id in changed}
    return [
        Write("nn_frontend", key, entry._replace(backends=0))
        for key, entry in frontends.items()
        if key in users and entry.backends
    ]


def _frontends(wanted: Table, held: Table) -> tuple[list[Write], list[Write]]:
    """(writes for deleted frontends, writes for new and changed ones)."""
    gone: dict[FrontendKey, list[Write]] = {}
    changed: dict[FrontendKey, list[Write]] = {}
    sets, deletes = _difference("nn_frontend", wanted, held)
    for write in deletes:
        master = write.key._replace(slot=0)
        (changed if master in wanted else gone).setdefault(master, []).append(write)
    for write in sets:
        changed.setdefault(write.key._replace(slot=0), []).append(write)
    return (
        [write for writes in gone.values() for write in sorted(writes, key=_slot)],
        [write for master, writes in changed.items() for write in _resize(writes, wanted[master], held.get(master))],
    )


def _resize(writes: Iterable[Write], new: FrontendEntry, old: FrontendEntry | None) -> Iterator[Write]:
    """Growing: write the slots, then the master entry. Shrinking: write the master entry, then the slots, then delete
    the slots beyond the new count."""
    shrinks = old is not None and new.backends < old.backends
    return iter(sorted(writes, key=lambda write: (write.is_delete, (_slot(write) == 0) != shrinks, _slot(write))))


def _slot(write: Write) -> int:
    key: FrontendKey = write.key
    return key.slot
