"""The tables that policies are compiled to, the keys of their entries, and what one compilation changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from netpolicy.entries import EntryKey
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, PolicyRef, RuleRef
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.abi import POLICY_BITS_DIRECTION, POLICY_BITS_PROTOCOL, U32, EndpointFlag, LpmKey, PolicyKey, Rule
from nodenet.compile.identities import IdentityChanges
from nodenet.compile.shares import LeftOut
from nodenet.model import Direction, IPNetwork, ObjectRef, Protocol

DIRECTIONS = {PolicyDirection.INGRESS: Direction.INGRESS, PolicyDirection.EGRESS: Direction.EGRESS}
_FLAGS = {
    PolicyDirection.INGRESS: EndpointFlag.ISOLATED_INGRESS,
    PolicyDirection.EGRESS: EndpointFlag.ISOLATED_EGRESS,
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


def policy_key(subject: int, key: EntryKey) -> PolicyKey:
    peer, direction, protocol, port, port_bits = key
    if protocol is None:
        return PolicyKey(POLICY_BITS_DIRECTION, subject, peer, DIRECTIONS[direction], 0, 0)
    bits = POLICY_BITS_PROTOCOL + port_bits
    return PolicyKey(bits, subject, peer, DIRECTIONS[direction], _PROTOCOLS[protocol], port)


def flags_of(isolated: Collection[PolicyDirection]) -> EndpointFlag:
    flags = EndpointFlag(0)
    for direction in isolated:
        flags |= _FLAGS[direction]
    return flags
