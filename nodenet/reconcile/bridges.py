"""Temporary allows for identities that a change ends. They exist only while the change is written.

If several pods change identity in one change, the maps may for a moment have the old identity of one pod and the new
identity of the other. The compiler makes no entry for such a pair, because no pod has the old identity any more. So a
packet between them would be dropped although both the old and the new state allow it. TCP repeats a lost SYN, but a
lost datagram is not repeated.

An identity that ends is treated like its successors: the identities that its addresses have after the change. If it has
several successors, only what all of them may do is allowed. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from nodenet.abi import U32, PolicyKey
from nodenet.model import Identity

Table = Mapping[Any, Any]
Tables = Mapping[str, Table]
Entries = dict[PolicyKey, U32]
Successors = dict[int, set[int]]

# Identities up to this number are reserved (a node, the world) and never end.
_LAST_RESERVED = 255


def bridges(wanted: Tables, held: Tables, endpoints: Iterable[Any], addresses: Iterable[Any]) -> Entries:
    """Entries of nn_policy to insert before the first identity changes and to delete after the last one.

    `wanted` and `held` have nn_policy, nn_endpoint and nn_ipcache. `endpoints` and `addresses` are the keys of
    nn_endpoint and nn_ipcache that the change writes. Empty if at most one address of each family changes its identity,
    because its peers then do not change.
    """
    moved = [key for key in addresses if key in held["nn_ipcache"] and key in wanted["nn_ipcache"]]
    if len(moved) < 2 or not _meet(moved):
        return {}
    peers = _successors(moved, held["nn_ipcache"], wanted["nn_ipcache"], lambda value: int(value.value))
    subjects = _successors(endpoints, held["nn_endpoint"], wanted["nn_endpoint"], lambda value: int(value.identity))
    if not peers and not subjects:
        return {}
    named = {new for successors in (*peers.values(), *subjects.values()) for new in successors}
    concerned = {k: v for k, v in wanted["nn_policy"].items() if k.subject in named or k.peer in named}
    found: Entries = {}
    for old, successors in subjects.items():
        found.update(_common(old, successors, concerned, "subject"))
    # Include the old subjects: an old policy may allow the old pair while a new one already applies.
    concerned.update(found)
    for old, successors in peers.items():
        found.update(_common(old, successors, concerned, "peer"))
    return {k: v for k, v in found.items() if k not in held["nn_policy"] and k not in wanted["nn_policy"]}


def _meet(moved: Iterable[Any]) -> bool:
    """True if at least two of the addresses are of the same family."""
    versions = [key.addr.version for key in moved]
    return len(versions) > len(set(versions))


def _successors(keys: Iterable[Any], held: Table, wanted: Table, identity: Callable[[Any], int]) -> Successors:
    """Old identity -> new identities of its addresses, for old identities that no entry of `wanted` has."""
    found: Successors = defaultdict(set)
    for key in keys:
        if key in held and key in wanted:
            old, new = identity(held[key]), identity(wanted[key])
            if old != new and old > _LAST_RESERVED:
                found[old].add(new)
    if found:
        for stays in {identity(value) for value in wanted.values()} & found.keys():
            del found[stays]
    # Identity 0 is unknown: its endpoint is isolated and no entry names it.
    return {old: new for old, new in found.items() if Identity.UNKNOWN not in new}


def _common(old: int, successors: set[int], entries: Entries, side: Literal["subject", "peer"]) -> Entries:
    """The entries that all successors have, changed to the identity that ends."""
    if side == "subject":
        per = [{k._replace(subject=old): v for k, v in entries.items() if k.subject == new} for new in successors]
    else:
        per = [{k._replace(peer=old): v for k, v in entries.items() if k.peer == new} for new in successors]
    return {key: value for key, value in per[0].items() if all(key in other for other in per[1:])}
