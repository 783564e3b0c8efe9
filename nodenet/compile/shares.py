"""Divides nn_policy and nn_cidr fairly: selects the policies whose rules are left out if not all of them fit. Pure.

Shares are max-min fair: first between namespaces, then between the subjects of a namespace; for one subject the
smallest policies come first. A namespace or subject that needs at most an equal share always gets it, however much the
others need. A policy is left out completely, but still isolates its pods. The selection depends only on the Snapshot,
so it is the same after a restart.

Only half of each map is divided. The other half is needed during changes, because new entries are written before old
ones are deleted.

ClusterNetworkPolicies come first, with up to half of this room: what they deny must not depend on the namespaces. One
that is left out accepts nothing, and denies everything if it denies or passes anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netpolicy.demands import Demand, DemandKey
from netpolicy.regions import Blocks, Prefix
from netpolicy.types import IPAddress, LabelSet, Policy, PolicyRef
from nodenet.tables import CIDR, IPCACHE, POLICY

# One subject gets at most 1 / _SUBJECT_PART of the room, because its entries need memory in the agent too. In a small
# map it gets up to _SUBJECT_LEAST entries.
_SUBJECT_PART = 8
_SUBJECT_LEAST = 4096


class Room(NamedTuple):
    """How much is used at most: entries of nn_policy, prefixes in nn_cidr, and entries of nn_ipcache."""

    entries: int
    prefixes: int
    addresses: int = IPCACHE.size.entries

    @classmethod
    def of(cls, policy_entries: int, cidr_entries: int, ipcache_entries: int = IPCACHE.size.entries) -> Room:
        """The room in maps of these sizes. Addresses that go may be deleted before others come, so nn_ipcache is
        shared out almost whole."""
        return cls(policy_entries // 2, cidr_entries // 2, ipcache_entries - ipcache_entries // 16)

    @property
    def subject(self) -> int:
        """The largest number of entries for one subject."""
        return min(self.entries, max(self.entries // _SUBJECT_PART, _SUBJECT_LEAST))


DEFAULT_ROOM = Room.of(POLICY.size.entries, CIDR.size.entries)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A policy whose rules are not in force. They need `asked` of `unit`, but only `limit` are available."""

    policy: PolicyRef
    unit: str
    asked: int
    limit: int
    subjects: int = 0

    @property
    def _effect(self) -> str:
        if self.policy.namespace:
            return "its rules are not in force, its pods stay isolated"
        return "its rules accept nothing, and deny everything if one of them denies or passes anything"

    def __str__(self) -> str:
        of = f" for each of {self.subjects} label sets of this node's pods" if self.subjects else ""
        name = f"{self.policy.namespace}/{self.policy.name}".removeprefix("/")
        return (
            f"{self.policy.kind} {name}: {self._effect}: it needs {self.asked} {self.unit}{of}, and at most "
            f"{self.limit} are left for it"
        )


Closed = Mapping[DemandKey, frozenset[PolicyRef]]


def fair_level(demands: Iterable[int], room: int) -> int:
    """The highest level at which all demands fit into `room` if each is reduced to the level. The largest demand if all
    fit."""
    left = sorted(demands)
    for place, demand in enumerate(left):
        others = len(left) - place
        if demand * others > room:
            return max(room, 0) // others
        room -= demand
    return max(left, default=0)


def share_entries(demands: Sequence[Demand], room: Room) -> tuple[Closed, tuple[LeftOut, ...]]:
    """Select what is left out of nn_policy. `demands`: one for each subject of this node."""
    if sum(demand.total for demand in demands) <= room.entries and all(d.total <= room.subject for d in demands):
        return {}, ()
    spaces: dict[str, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.total:
            spaces[demand.key.policies[0].namespace].append(demand)
    asked = {name: sum(min(d.total, room.subject) for d in found) for name, found in spaces.items()}
    levels = _levels(asked, room.entries)
    closed: dict[DemandKey, frozenset[PolicyRef]] = {}
    found: dict[PolicyRef, list[tuple[int, int]]] = defaultdict(list)
    for name, subjects in spaces.items():
        limit = min(room.subject, fair_level((min(d.total, room.subject) for d in subjects), levels[name]))
        for demand in subjects:
            sizes = dict(zip(demand.key.policies, demand.sizes, strict=True))
            left_out = _largest(sizes, limit)
            if left_out:
                closed[demand.key] = frozenset(left_out)
            for ref, left in left_out.items():
                found[ref].append((sizes[ref], left))
    return closed, tuple(
        LeftOut(ref, "entries of nn_policy", max(size for size, _ in each), min(left for _, left in each), len(each))
        for ref, each in sorted(found.items())
    )


def share_prefixes(
    policies: Iterable[Policy], addresses: Collection[tuple[IPAddress, LabelSet]], room: int
) -> tuple[LeftOut, ...]:
    """Select the policies that are left out because of their ipBlocks. `policies`: all policies. `room`: how many
    prefixes fit. `addresses`: those of pods; an egress rule with an ipBlock and a named port needs a
    prefix for each pod."""
    spaces: dict[str, list[Policy]] = defaultdict(list)
    for policy in policies:
        spaces[policy.namespace].append(policy)

    def prefixes(some: Iterable[Policy]) -> set[Prefix]:
        blocks = Blocks()
        for policy in some:
            blocks.change(None, policy)
        return {*blocks.cuts, *(blocks.hosts(addresses) if blocks.names_ports else ())}

    levels = _levels({name: len(prefixes(found)) for name, found in spaces.items()}, room)
    return tuple(
        one for name, found in sorted(spaces.items()) for one in _largest_blocks(found, prefixes, levels[name])
    )


def _levels(asked: Mapping[str, int], room: int) -> dict[str, int]:
    """How much each namespace gets. ClusterNetworkPolicies, whose namespace is "", get up to half of the room first."""
    wide = min(asked.get("", 0), room // 2)
    level = fair_level((number for name, number in asked.items() if name), room - wide)
    return {name: level if name else wide for name in asked}


def _largest_blocks(
    policies: Iterable[Policy], prefixes: Callable[[Iterable[Policy]], set[Prefix]], level: int
) -> list[LeftOut]:
    """The policies of one namespace that are left out. Policies with common blocks need fewer prefixes than the sum."""
    each = {policy.ref: prefixes([policy]) for policy in policies}
    taken: set[Prefix] = set()
    for place, (ref, found) in enumerate(ordered := sorted(each.items(), key=lambda item: (len(item[1]), item[0]))):
        if len(taken | found) > level:
            left = level - len(taken)
            return [LeftOut(ref, "prefixes in ipBlocks", len(found), left) for ref, found in ordered[place:]]
        taken |= found
    return []


def _largest(sizes: Mapping[PolicyRef, int], limit: int) -> dict[PolicyRef, int]:
    """The largest policies, which are left out so that the others fit into `limit`. The value is the number of entries
    that were left for the policy."""
    left = limit
    for place, (ref, size) in enumerate(ordered := sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        if size > left:
            return {ref: left for ref, _ in ordered[place:]}
        left -= size
    return {}
