"""Fair shares of nn_policy and nn_cidr: which policies' rules are left out when not all of them fit. Pure.

Shares are max-min fair: first among namespaces, then among the subjects of a namespace, then the smallest policies of a
subject. Whoever asks for no more than an equal part of the room gets all of it, whatever others ask for. A policy is
left out whole, and goes on isolating. What is left out follows from the Snapshot alone: it is the same after a restart.

Half of each map is shared out. The other half is for changes: new entries are written before old ones are deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netpolicy.regions import Blocks, Prefix
from netpolicy.resolve import Demand, DemandKey
from netpolicy.types import IPAddress, LabelSet, NetworkPolicy, PolicyRef
from nodenet.tables import CIDR, POLICY

# The entries of one subject need memory in the agent too: at most this part of the room is for one subject, but a
# small map may be used by a single one.
_SUBJECT_PART = 8
_SUBJECT_LEAST = 4096


class Room(NamedTuple):
    """Entries of nn_policy and prefixes of nn_cidr that may be in force at once."""

    entries: int
    prefixes: int

    @classmethod
    def of(cls, policy_entries: int, cidr_entries: int) -> Room:
        """For maps of these sizes."""
        return cls(policy_entries // 2, cidr_entries // 2)

    @property
    def subject(self) -> int:
        """Entries of one subject at most."""
        return min(self.entries, max(self.entries // _SUBJECT_PART, _SUBJECT_LEAST))


DEFAULT_ROOM = Room.of(POLICY.size.entries, CIDR.size.entries)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A policy whose rules are not in force. `asked` and `limit` are what they need in `unit`, and what there is."""

    policy: PolicyRef
    unit: str
    asked: int
    limit: int
    subjects: int = 0

    def __str__(self) -> str:
        of = f" for each of {self.subjects} label sets of this node's pods" if self.subjects else ""
        return (
            f"NetworkPolicy {self.policy.namespace}/{self.policy.name}: its rules are not in force, its pods stay "
            f"isolated: it needs {self.asked} {self.unit}{of}, and at most {self.limit} are left for it"
        )


Closed = Mapping[DemandKey, frozenset[PolicyRef]]


def fair_level(demands: Iterable[int], room: int) -> int:
    """The highest level such that the demands, each cut off at the level, fit into `room`. No less than the largest
    demand if all fit."""
    left = sorted(demands)
    for place, demand in enumerate(left):
        others = len(left) - place
        if demand * others > room:
            return max(room, 0) // others
        room -= demand
    return max(left, default=0)


def share_entries(demands: Sequence[Demand], room: Room) -> tuple[Closed, tuple[LeftOut, ...]]:
    """What is left out of nn_policy. `demands`: one for each subject of this node."""
    if sum(demand.total for demand in demands) <= room.entries and all(d.total <= room.subject for d in demands):
        return {}, ()
    spaces: dict[str, list[Demand]] = defaultdict(list)
    for demand in demands:
        if demand.total:
            spaces[demand.key.policies[0].namespace].append(demand)
    asked = {name: sum(min(d.total, room.subject) for d in found) for name, found in spaces.items()}
    level = fair_level(asked.values(), room.entries)
    closed: dict[DemandKey, frozenset[PolicyRef]] = {}
    found: dict[PolicyRef, list[tuple[int, int]]] = defaultdict(list)
    for subjects in spaces.values():
        limit = min(room.subject, fair_level((min(d.total, room.subject) for d in subjects), level))
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
    policies: Iterable[NetworkPolicy], addresses: Collection[tuple[IPAddress, LabelSet]], room: Room
) -> tuple[LeftOut, ...]:
    """What is left out because of its ipBlocks. `policies`: all that there are. `addresses`: those of pods, for egress
    rules that combine an ipBlock with a named port: these make a prefix of each pod."""
    spaces: dict[str, list[NetworkPolicy]] = defaultdict(list)
    for policy in policies:
        spaces[policy.namespace].append(policy)

    def prefixes(some: Iterable[NetworkPolicy]) -> set[Prefix]:
        blocks = Blocks()
        for policy in some:
            blocks.change(None, policy)
        return {*blocks.cuts, *(blocks.hosts(addresses) if blocks.names_ports else ())}

    level = fair_level((len(prefixes(found)) for found in spaces.values()), room.prefixes)
    return tuple(one for _, found in sorted(spaces.items()) for one in _largest_blocks(found, prefixes, level))


def _largest_blocks(
    policies: Iterable[NetworkPolicy], prefixes: Callable[[Iterable[NetworkPolicy]], set[Prefix]], level: int
) -> list[LeftOut]:
    """Of one namespace. Policies that share their blocks need less than the sum."""
    each = {policy.ref: prefixes([policy]) for policy in policies}
    taken: set[Prefix] = set()
    for place, (ref, found) in enumerate(ordered := sorted(each.items(), key=lambda item: (len(item[1]), item[0]))):
        if len(taken | found) > level:
            left = level - len(taken)
            return [LeftOut(ref, "prefixes in ipBlocks", len(found), left) for ref, found in ordered[place:]]
        taken |= found
    return []


def _largest(sizes: Mapping[PolicyRef, int], limit: int) -> dict[PolicyRef, int]:
    """The policies that are left out so that the others need no more than `limit`, each with what was left for it."""
    left = limit
    for place, (ref, size) in enumerate(ordered := sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        if size > left:
            return {ref: left for ref, _ in ordered[place:]}
        left -= size
    return {}
