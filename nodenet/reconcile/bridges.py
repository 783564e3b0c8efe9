"""Allows that stand only while a change is written, for identities that the change ends.

When several pods change identity in one change, a packet may meet one pod as it was and the other as it will be: the
old subject and the new peer, or the reverse. The compiler makes no entry for such a pair once no pod has the old
identity. So the packet would be dropped although the old state and the new one allow it. TCP repeats a lost SYN; a
lost datagram is lost for good.

An identity that ends is judged like its successors: the identities that its addresses have after the change. With
several successors, only what all of them may do counts. Pure.
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

# Up to this number an identity is reserved (a node, the world): it never ends.
_LAST_RESERVED = 255


def bridges(wanted: Tables, held: Tables, endpoints: Iterable[Any], addresses: Iterable[Any]) -> Entries:
    """Entries of nn_policy to insert before the first identity is switched and to delete after the last one.

    `wanted` and `held` have nn_policy, nn_endpoint and nn_ipcache. `endpoints` and `addresses` are the keys of
    nn_endpoint and nn_ipcache that the change writes. Empty where one address of a family changes its identity: its
    packets meet only addresses that stay as they are.
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
    # Old subjects too: the old pair may be allowed by an old policy and judged by a new one.
    concerned.update(found)
    for old, successors in peers.items():
        found.update(_common(old, successors, concerned, "peer"))
    return {k: v for k, v in found.items() if k not in held["nn_policy"] and k not in wanted["nn_policy"]}


def _meet(moved: Iterable[Any]) -> bool:
    """Whether two of the addresses are of one family."""
    versions = [key.addr.version for key in moved]
    return len(versions) > len(set(versions))


def _successors(keys: Iterable[Any], held: Table, wanted: Table, identity: Callable[[Any], int]) -> Successors:
    """Old identity -> the new ones of its addresses, for the identities that nothing in `wanted` has."""
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
    """The entries that every successor has, for the identity that ends."""
    if side == "subject":
        per = [{k._replace(subject=old): v for k, v in entries.items() if k.subject == new} for new in successors]
    else:
        per = [{k._replace(peer=old): v for k, v in entries.items() if k.peer == new} for new in successors]
    return {key: value for key, value in per[0].items() if all(key in other for other in per[1:])}
