"""Plans the writes from the actual to the desired content of the maps of Services. Their order keeps the maps
consistent after every single write.

At any time, slots 1..count of a frontend point to existing backends, which belong to the old or the new set. A backend
in a slot of a UDP Service is always a member of that Service. The EXTERNAL entry of a frontend is complete before the
INTERNAL one leads to it, and is deleted when that does not lead to it any more. nodenet.reconcile.switch plans policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from operator import is_not
from typing import Any, Generic, NamedTuple, TypeVar

from nodenet.abi import FrontendEntry, FrontendKey
from nodenet.evolved import Evolved
from nodenet.tables import Group, Step, members, steps

Table = Mapping[Any, Any]
Tables = Mapping[str, Table]

T = TypeVar("T")
SERVICE_TABLES = members(Group.SERVICES)
_SETS, _DELETES = ({name: Step(name, deletes) for name in SERVICE_TABLES} for deletes in (False, True))
_ORDER = {step: place for place, step in enumerate(steps(Group.SERVICES))}
_EMPTY: Table = {}


class Write(NamedTuple):
    """One write of one map entry. `value` None deletes the key. In maps whose values have two versions, `value` is the
    one after the change."""

    table: str
    key: Any
    value: Any | None = None

    @property
    def is_delete(self) -> bool:
        return self.value is None

    def __str__(self) -> str:
        return f"{self.table}: delete {self.key}" if self.is_delete else f"{self.table}: set {self.key} to {self.value}"


def plan_services(desired: Tables, actual: Tables) -> list[Write]:
    """The writes of Services, in this order: delete frontends, add backends, members, revnat and addresses, change
    frontends, delete members, backends, revnat and addresses. So the unserved ports of an address are refused as long
    as it has a frontend."""
    differ = replaced(SERVICE_TABLES, desired, actual)
    # Most changes are of endpoints and touch two tables: the work is for these only.
    found: dict[Step, list[Write]] = {}
    for name in differ:
        if name != "nn_frontend":
            found[_SETS[name]], found[_DELETES[name]] = _difference(
                name, desired.get(name, _EMPTY), actual.get(name, _EMPTY)
            )
    if "nn_frontend" in differ or "nn_backend" in differ:
        backends = found.get(_SETS["nn_backend"], [])
        found[_SETS["nn_frontend"]], found[_DELETES["nn_frontend"]] = _plan_frontends(
            desired.get("nn_frontend", _EMPTY), actual, backends
        )
    return [write for step in sorted(found, key=_ORDER.__getitem__) for write in found[step]]


def replaced(names: Sequence[str], desired: Tables, actual: Tables) -> list[str]:
    """The tables that are not the same object in both. Each run asks this several times: loops in C cost a fifth."""
    return list(compress(names, map(is_not, map(desired.get, names), map(actual.get, names))))


def _plan_frontends(wanted: Table, actual: Tables, backends: list[Write]) -> tuple[list[Write], list[Write]]:
    """(writes for new and changed frontends, writes for closed and deleted ones). `backends`: the writes of backends,
    which are made between the two."""
    known, held = actual.get("nn_backend", _EMPTY), actual.get("nn_frontend", _EMPTY)
    first = _first_frontends(wanted) if not held else None
    if first is not None:
        return first, []
    closed = _close_renumbered({write.key.value for write in backends if write.key in known}, held)
    # The next steps start from the closed master entries.
    gone, changed = _frontends(wanted, {**held, **{w.key: w.value for w in closed}} if closed else held)
    return changed, [*closed, *gone]


def _first_frontends(wanted: Table) -> list[Write] | None:
    """The writes of all frontends into an empty map, in the order of `_frontends`. None if a slot does not follow its
    master entry in the table, as it does in a first compilation: then `_frontends` has to sort."""
    scopes: _Scopes[list[Write]] = _Scopes([], [])
    writes: list[Write] = []
    master: Write | None = None
    of: tuple[Any, ...] = ()
    for key, value in wanted.items():
        if not key.slot:
            # The slots of a frontend come before its master entry.
            if master is not None:
                writes.append(master)
            writes, master, of = scopes[key.scope], Write("nn_frontend", key, value), (*key[:3], key.scope)
        elif (*key[:3], key.scope) != of:
            return None
        else:
            writes.append(Write("nn_frontend", key, value))
    if master is not None:
        writes.append(master)
    return [*scopes.external, *scopes.internal]


def differences(one: Table, other: Table) -> int:
    """The number of keys that are in only one of the tables or have different values."""
    common = sum(1 for key, value in one.items() if key in other and other[key] != value)
    return common + len(one.keys() - other.keys()) + len(other.keys() - one.keys())


def _difference(name: str, wanted: Table, held: Table) -> tuple[list[Write], list[Write]]:
    """(sets, deletes) of one table."""
    sets: list[Write] = []
    deletes: list[Write] = []
    for key, value, _ in differing(wanted, held):
        (deletes if value is None else sets).append(Write(name, key, value))
    return sets, deletes


def differing(wanted: Table, held: Table) -> list[tuple[Any, Any, Any]]:
    """(key, value in `wanted`, value in `held`) for each key that differs; None if a table does not have it."""
    if wanted is held:
        return []
    known = wanted.changes_since(held) if isinstance(wanted, Evolved) else None
    if known is not None:
        return [(key, value, old) for key, (old, value) in known.items() if value != old]
    if not held:
        return [(key, value, None) for key, value in wanted.items()]
    found = [(key, value, old) for key, value in wanted.items() if (old := held.get(key)) != value]
    return [*found, *((key, None, old) for key, old in held.items() if key not in wanted)]


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
    gone, changed = _by_master(), _by_master()
    # EXTERNAL entries that go, of frontends that stay.
    unused: dict[FrontendKey, list[Write]] = {}
    sets, deletes = _difference("nn_frontend", wanted, held)
    for write in deletes:
        master = write.key._replace(slot=0)
        if master in wanted:
            changed[master.scope].setdefault(master, []).append(write)
        elif master.scope and master._replace(scope=0) in wanted:
            unused.setdefault(master, []).append(write)
        else:
            gone[master.scope].setdefault(master, []).append(write)
    for write in sets:
        changed[write.key.scope].setdefault(write.key._replace(slot=0), []).append(write)
    ordered = chain(changed.external.items(), changed.internal.items())
    return (
        [write for writes in (*gone.internal.values(), *gone.external.values()) for write in sorted(writes, key=_slot)],
        [
            *(write for master, writes in ordered for write in _resize(writes, wanted[master], held.get(master))),
            *(write for writes in unused.values() for write in sorted(writes, key=_slot)),
        ],
    )


class _Scopes(NamedTuple, Generic[T]):
    """Writes, or writes by master entry. The index is a FrontendScope."""

    internal: T
    external: T


def _by_master() -> _Scopes[dict[FrontendKey, list[Write]]]:
    return _Scopes({}, {})


def _resize(writes: Iterable[Write], new: FrontendEntry, old: FrontendEntry | None) -> Iterator[Write]:
    """Growing: write the slots, then the master entry. Shrinking: write the master entry, then the slots, then delete
    the slots beyond the new count."""
    shrinks = old is not None and new.backends < old.backends
    return iter(sorted(writes, key=lambda write: (write.is_delete, (_slot(write) == 0) != shrinks, _slot(write))))


def _slot(write: Write) -> int:
    key: FrontendKey = write.key
    return key.slot
