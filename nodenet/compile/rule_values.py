"""What nn_policy holds for a subject: the entries of its NetworkPolicies and of both other tiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from netpolicy.entries import ALL_PORTS, EntryKey
from netpolicy.resolve import ResolvedPolicy
from netpolicy.tiers import NO_TIERS, ResolvedTiers, TierKey
from netpolicy.types import Direction, PolicyRef, RuleRef, Tier
from nodenet.abi import PolicyKey, Rule
from nodenet.compile.ids import Ids
from nodenet.compile.policy_tables import policy_key, rule_value
from nodenet.model import Identity


class Resolved(NamedTuple):
    """The policy of one subject."""

    own: ResolvedPolicy
    tiers: ResolvedTiers

    @property
    def policies(self) -> tuple[PolicyRef, ...]:
        """All policies that select it."""
        return self.own.policies + self.tiers.policies


# Stronger than all rules, and the rule of no policy.
_UNMANAGED = Rule.deny(0, (1 << 24) - 1)
NOTHING = Resolved(ResolvedPolicy((), {}, {}), NO_TIERS)


class RuleValues:
    """Makes the values of one compilation."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        # By the id of the rule, because hashing the rule costs more. The rules exist as long as their entries.
        self._allows: dict[int, Rule] = {}

    def changes(self, subject: int, old: Resolved, new: Resolved) -> dict[PolicyKey, Rule | None]:
        """The entries that differ from the previous ones; None for one that goes."""
        found: dict[PolicyKey, Rule | None] = {}
        if old.tiers.asked != new.tiers.asked:
            for direction in Direction:
                # A deny of a pod must match it too when its address has no room (compile/address_room.py).
                key = EntryKey(int(Identity.UNMANAGED), direction, *ALL_PORTS)
                is_asked = direction in new.tiers.asked
                found[policy_key(subject, key, Tier.ADMIN)] = _UNMANAGED if is_asked else None
        for key in _changed_entries(old.own, new.own):
            ref = new.own.entries.get(key)
            found[policy_key(subject, key)] = self._allow(ref) if ref is not None else self._lower(key, new)
        for place in _changed_places(old.tiers, new.tiers):
            tier, key = place
            # A NetworkPolicy that isolates replaces the Baseline tier.
            if tier is Tier.BASELINE and key in new.own.entries:
                continue
            rule = new.tiers.entries.get(place)
            value = rule_value(tier, rule, self._ids.rules.number(rule.ref)) if rule is not None else None
            found[policy_key(subject, key, tier)] = value
        return found

    def _allow(self, ref: RuleRef) -> Rule:
        value = self._allows.get(id(ref))
        if value is None:
            value = self._allows[id(ref)] = Rule.allow(self._ids.rules.number(ref))
        return value

    def _lower(self, key: EntryKey, new: Resolved) -> Rule | None:
        """What the Baseline tier says in place of an entry of a NetworkPolicy that went."""
        rule = new.tiers.entries.get(TierKey(Tier.BASELINE, key))
        return rule_value(Tier.BASELINE, rule, self._ids.rules.number(rule.ref)) if rule is not None else None


def _changed_entries(old: ResolvedPolicy, new: ResolvedPolicy) -> Iterable[EntryKey]:
    """The resolver knows which entries changed since `old`; otherwise compare all entries."""
    if new is old:
        return ()
    return new.changed if new.since is old else {**old.entries, **new.entries}


def _changed_places(old: ResolvedTiers, new: ResolvedTiers) -> Iterable[TierKey]:
    if new is old:
        return ()
    return new.changed if new.since is old else {**old.entries, **new.entries}
