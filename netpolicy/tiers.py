"""Entries of the Admin and the Baseline tier, whose rules have an order.

Within a tier the strongest rule decides that matches the peer's label set, the region of its address, or every peer,
and for each of these three the longest prefix of protocol and port. So an entry is left out if a shorter prefix for the
same peer has a stronger rule: then a longer prefix is never weaker than a shorter one that covers it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from netpolicy.demands import DemandKey
from netpolicy.entries import ALL_PORTS, ANY, PORT_BITS, EntryKey
from netpolicy.types import Action, ClusterPolicy, Direction, PolicyRef, RuleRef, Tier

# The order of rules as numbers of 24 bits: the priority, the place among policies of the same priority, the place in
# the policy. A number does not depend on policies of other priorities, so they can change without it.
_RULE_BITS, _PLACE_BITS = 5, 9
_LAST_PRIORITY = 1000
# So many policies of one tier and priority have a place of their own for one pod.
PLACES = 1 << _PLACE_BITS

Entries = Mapping[EntryKey, RuleRef]


class TierKey(NamedTuple):
    """The tier, and what an entry of it matches."""

    tier: Tier
    entry: EntryKey


class TierRule(NamedTuple):
    """What an entry says. The larger `precedence` is the stronger one."""

    precedence: int
    action: Action
    ref: RuleRef


@dataclass(frozen=True, slots=True)
class ResolvedTiers:
    """The rules of both tiers for one subject. `policies` are those that select it. `asked`: the directions in which a
    tier must be asked. `changed`: as in ResolvedPolicy. Policies in `closed` accept nothing, and deny everything if
    they deny or pass anything."""

    policies: tuple[PolicyRef, ...] = ()
    asked: frozenset[Direction] = frozenset()
    entries: Mapping[TierKey, TierRule] = field(default_factory=dict)
    closed: frozenset[PolicyRef] = frozenset()
    opened: frozenset[Direction] = frozenset()
    since: ResolvedTiers | None = field(default=None, compare=False, repr=False)
    changed: Collection[TierKey] = field(default=(), compare=False, repr=False)


NO_TIERS = ResolvedTiers()


class ResolvedKey(NamedTuple):
    """Subjects that share a ResolvedTiers. `opened`: the directions in which no NetworkPolicy isolates them; only there
    the Baseline tier is asked."""

    demand: DemandKey
    opened: frozenset[Direction]


class Layer(NamedTuple):
    """One policy with its entries for a subject, and the precedence of its first rule. `parts`: by direction; None: the
    policy is closed."""

    policy: ClusterPolicy
    precedence: int
    parts: Mapping[Direction, Entries] | None


def crowded(policies: Sequence[ClusterPolicy]) -> frozenset[PolicyRef]:
    """The policies for which there is no place among those of the same tier and priority. `policies`: those that select
    one subject, in the order of their strength."""
    places: dict[tuple[Tier, int], int] = {}
    found = set()
    for policy in policies:
        level = (policy.tier, policy.priority)
        places[level] = places.get(level, 0) + 1
        # The last place is that of the closed ones: they all deny, so there is no order among them.
        if places[level] >= PLACES:
            found.add(policy.ref)
    return frozenset(found)


def precedences(policies: Iterable[ClusterPolicy]) -> list[int]:
    """The precedence of each policy's first rule. `policies`: as in `crowded`."""
    places: dict[tuple[Tier, int], int] = {}
    found = []
    for policy in policies:
        level = (policy.tier, policy.priority)
        place = min(places.get(level, 0), PLACES - 1)
        places[level] = place + 1
        number = (_LAST_PRIORITY - policy.priority) << _PLACE_BITS | (PLACES - 1 - place)
        found.append((number << _RULE_BITS) + (1 << _RULE_BITS) - 1)
    return found


def combined(
    layers: Sequence[Layer], opened: Collection[Direction], only: Collection[int] | None = None
) -> dict[TierKey, TierRule]:
    """The entries of both tiers; those of the Baseline tier in the directions `opened`. With `only`, just those for
    these peers. `layers`: in the order of the policies' strength."""
    found: dict[TierKey, TierRule] = {}
    for direction in Direction:
        for tier in (Tier.ADMIN, Tier.BASELINE):
            if tier is Tier.ADMIN or direction in opened:
                mine = [layer for layer in layers if layer.policy.tier is tier]
                found.update(_tier(tier, direction, mine, only))
    return found


def _tier(
    tier: Tier, direction: Direction, layers: Iterable[Layer], only: Collection[int] | None
) -> Iterable[tuple[TierKey, TierRule]]:
    first: dict[EntryKey, TierRule] = {}
    for layer in layers:
        rules = layer.policy.rules(direction)
        if layer.parts is None:
            first.update((key, rule) for key, rule in _closed(layer, direction, only) if key not in first)
            continue
        for key, ref in layer.parts[direction].items():
            if key not in first and (only is None or key.peer in only):
                first[key] = TierRule(layer.precedence - ref.index, rules[ref.index].action, ref)
    lengths = sorted({key.port_bits for key in first if key.protocol is not None})
    return [
        (TierKey(tier, key), rule)
        for key, rule in first.items()
        if not any(cover in first and first[cover].precedence > rule.precedence for cover in _covers(key, lengths))
    ]


def _closed(layer: Layer, direction: Direction, only: Collection[int] | None) -> Iterable[tuple[EntryKey, TierRule]]:
    for index, rule in enumerate(layer.policy.rules(direction)):
        if rule.action is not Action.ACCEPT and (only is None or ANY in only):
            ref = layer.policy.rule_ref(direction, index)
            yield EntryKey(ANY, direction, *ALL_PORTS), TierRule(layer.precedence - index, Action.DENY, ref)
            return


def _covers(key: EntryKey, lengths: Iterable[int]) -> Iterable[EntryKey]:
    """The shorter prefixes for the same peer that contain a key. `lengths`: the port bits that occur."""
    if key.protocol is None:
        return
    yield EntryKey(key.peer, key.direction, *ALL_PORTS)
    for bits in lengths:
        if bits < key.port_bits:
            port = key.port >> (PORT_BITS - bits) << (PORT_BITS - bits)
            yield EntryKey(key.peer, key.direction, key.protocol, port, bits)
