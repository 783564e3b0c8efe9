"""The tables that policies are compiled to, the keys of their entries, and what one compilation changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from netpolicy.entries import EntryKey
from netpolicy.tiers import TierRule
from netpolicy.types import Action, LabelSet, PolicyRef, RuleRef, Tier
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.abi import (
    POLICY_BITS_DIRECTION,
    POLICY_BITS_PROTOCOL,
    U32,
    EndpointFlag,
    LpmKey,
    PolicyKey,
    Rule,
    RuleDirection,
)
from nodenet.compile.identities import IdentityChanges
from nodenet.compile.shares import LeftOut
from nodenet.model import Direction, IPNetwork, ObjectRef, Protocol

DIRECTIONS = {PolicyDirection.INGRESS: Direction.INGRESS, PolicyDirection.EGRESS: Direction.EGRESS}
# By whether the rule is one of the Admin tier. The other tiers share their keys: an isolated subject has no rules of
# the Baseline tier, another one none of NetworkPolicies.
_PLACES = {
    (False, PolicyDirection.INGRESS): RuleDirection.INGRESS,
    (False, PolicyDirection.EGRESS): RuleDirection.EGRESS,
    (True, PolicyDirection.INGRESS): RuleDirection.ADMIN_INGRESS,
    (True, PolicyDirection.EGRESS): RuleDirection.ADMIN_EGRESS,
}
_FLAGS = {
    PolicyDirection.INGRESS: EndpointFlag.ISOLATED_INGRESS,
    PolicyDirection.EGRESS: EndpointFlag.ISOLATED_EGRESS,
}
_TIERED = {
    PolicyDirection.INGRESS: EndpointFlag.TIERED_INGRESS,
    PolicyDirection.EGRESS: EndpointFlag.TIERED_EGRESS,
}
_PROTOCOLS = {protocol: int(Protocol[protocol.name]) for protocol in PolicyProtocol}


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """The result of compiling NetworkPolicies: the contents of two maps, and data for endpoints, flow names and
    status."""

    # nn_policy and nn_cidr.
    policy: Mapping[PolicyKey, Rule]
    cidr: Mapping[LpmKey, U32]
    # Identity of every pod that has one. hostNetwork pods, finished pods without an endpoint here, and pods with
    # unreadable labels have none.
    identities: Mapping[ObjectRef, int]
    # Isolation flags by identity; only identities that have an endpoint here.
    flags: Mapping[int, EndpointFlag]
    # The meaning of the numbers in kernel events: rule_id, identity and region.
    rules: Mapping[int, RuleRef]
    labels: Mapping[int, LabelSet]
    regions: Mapping[int, IPNetwork]
    # By identity: the policies that isolate its endpoints.
    isolating: Mapping[int, Mapping[Direction, tuple[PolicyRef, ...]]]
    # Policies whose rules do not fit into the maps. They still isolate their pods.
    left_out: tuple[LeftOut, ...] = ()


@dataclass(slots=True)
class Changes:
    """The changes of one compilation; the value None deletes the entry."""

    pods: IdentityChanges = field(default_factory=IdentityChanges)
    policy: dict[PolicyKey, Rule | None] = field(default_factory=dict)
    cidr: dict[LpmKey, U32 | None] = field(default_factory=dict)
    regions: dict[int, IPNetwork | None] = field(default_factory=dict)
    policies: set[PolicyRef] = field(default_factory=set)
    # The entries or the policies of at least one subject changed.
    has_other_policies: bool = False


def policy_key(subject: int, key: EntryKey, tier: Tier = Tier.NETWORK_POLICY) -> PolicyKey:
    peer, direction, protocol, port, port_bits = key
    place = _PLACES[tier is Tier.ADMIN, direction]
    if protocol is None:
        return PolicyKey(POLICY_BITS_DIRECTION, subject, peer, place, 0, 0)
    bits = POLICY_BITS_PROTOCOL + port_bits
    return PolicyKey(bits, subject, peer, place, _PROTOCOLS[protocol], port)


def flags_of(isolated: Collection[PolicyDirection], tiered: Collection[PolicyDirection] = ()) -> EndpointFlag:
    flags = EndpointFlag(0)
    for direction in isolated:
        flags |= _FLAGS[direction]
    for direction in tiered:
        flags |= _TIERED[direction]
    return flags


def rule_value(tier: Tier, rule: TierRule, number: int) -> Rule:
    """What nn_policy says of a rule of a ClusterNetworkPolicy. The default after the Baseline tier is to allow, so Pass
    allows there."""
    if rule.action is Action.DENY:
        return Rule.deny(number, rule.precedence)
    if rule.action is Action.PASS and tier is Tier.ADMIN:
        return Rule.pass_(number, rule.precedence)
    return Rule.allow(number, rule.precedence)
