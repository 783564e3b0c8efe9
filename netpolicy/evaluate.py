"""Evaluates one packet directly from the policies, without compiled entries. The matrix and explanations use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from netpolicy.cluster import Pod
from netpolicy.selectors import Namespaces, matches, peer_selects
from netpolicy.types import (
    Direction,
    IPAddress,
    IPBlock,
    LabelSet,
    NetworkPolicy,
    Peer,
    PolicyRef,
    PortRule,
    Protocol,
    Rule,
    RuleRef,
)


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection. `labels` None: policy cannot select it (an outside address, a node).

    `host`: a node's own address or a hostNetwork pod, on `node` if that is known. `address` None: not known.
    """

    name: str
    labels: LabelSet | None = None
    address: IPAddress | None = None
    node: str = ""
    host: bool = False

    @classmethod
    def of(cls, pod: Pod, address: IPAddress | None) -> Party:
        return cls(str(pod), None if pod.host_network else pod.labels, address, pod.node, pod.host_network)


class Traffic(NamedTuple):
    """The protocol and port of the question. `protocol` None: not a protocol that a rule can name (ICMP); `port` is
    0 then."""

    protocol: Protocol | None
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" if self.protocol else "ICMP"


class Reason(StrEnum):
    """The reason of a direction's verdict."""

    RULE = "rule"
    NO_RULE = "no-rule"
    NOT_ISOLATED = "not-isolated"
    NOT_A_POD = "not-a-pod"
    OWN_NODE = "own-node"
    ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """The verdict for one end: the policies that isolate it, and all rules that allow the connection, in order."""

    direction: Direction
    reason: Reason
    isolated_by: tuple[PolicyRef, ...] = ()
    allowed_by: tuple[RuleRef, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason is not Reason.NO_RULE


@dataclass(frozen=True, slots=True)
class Verdict:
    """A connection is allowed if the source's egress and the destination's ingress allow it."""

    egress: DirectionVerdict
    ingress: DirectionVerdict

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


class Evaluator:
    """Evaluates connections for one set of policies, and caches intermediate results."""

    def __init__(self, policies: Iterable[NetworkPolicy], namespaces: Namespaces) -> None:
        self.namespaces = namespaces
        self._by_namespace: dict[str, list[NetworkPolicy]] = {}
        for policy in sorted(policies, key=lambda p: p.ref):
            self._by_namespace.setdefault(policy.namespace, []).append(policy)
        self._isolating: dict[tuple[LabelSet, Direction], tuple[NetworkPolicy, ...]] = {}
        self._selected: dict[tuple[str, Peer, LabelSet], bool] = {}
        self._open: dict[tuple[LabelSet, Direction, Party], list[tuple[RuleRef, Rule]]] = {}

    def verdict(self, source: Party, destination: Party, traffic: Traffic) -> Verdict:
        """The verdict for a new connection from `source` to `destination`."""
        itself = source == destination and source.labels is not None
        return Verdict(
            self._direction(Direction.EGRESS, source, destination, destination, traffic, itself),
            self._direction(Direction.INGRESS, destination, source, destination, traffic, itself),
        )

    def isolating(self, subject: LabelSet, direction: Direction) -> tuple[NetworkPolicy, ...]:
        """The policies that isolate pods with these labels, sorted by name."""
        key = (subject, direction)
        if key not in self._isolating:
            self._isolating[key] = tuple(
                policy
                for policy in self._by_namespace.get(subject.namespace, ())
                if direction in policy.directions and matches(policy.selector, subject.mapping)
            )
        return self._isolating[key]

    def peer_matches(self, namespace: str, peer: Peer, other: Party) -> bool:
        """True if a peer of a policy in `namespace` matches: by labels, or by address for an ipBlock."""
        if peer.block is not None:
            return block_matches(peer.block, other.address)
        if other.labels is None:
            return False
        key = (namespace, peer, other.labels)
        if key not in self._selected:
            self._selected[key] = peer_selects(peer, namespace, other.labels, self.namespaces)
        return self._selected[key]

    def _direction(
        self, direction: Direction, subject: Party, other: Party, destination: Party, traffic: Traffic, itself: bool
    ) -> DirectionVerdict:
        if subject.labels is None:
            return DirectionVerdict(direction, Reason.NOT_A_POD)
        policies = self.isolating(subject.labels, direction)
        names = tuple(policy.ref for policy in policies)
        if not names:
            return DirectionVerdict(direction, Reason.NOT_ISOLATED)
        if itself:
            return DirectionVerdict(direction, Reason.ITSELF, names)
        if other.host and other.node and other.node == subject.node:
            return DirectionVerdict(direction, Reason.OWN_NODE, names)
        rules = tuple(
            ref
            for ref, rule in self._rules_for(subject.labels, direction, other, policies)
            if ports_match(rule.ports, traffic, destination.labels)
        )
        return DirectionVerdict(direction, Reason.RULE if rules else Reason.NO_RULE, names, rules)

    def _rules_for(
        self, subject: LabelSet, direction: Direction, other: Party, policies: tuple[NetworkPolicy, ...]
    ) -> list[tuple[RuleRef, Rule]]:
        """The rules whose peers match `other`, for any port."""
        key = (subject, direction, other)
        if key not in self._open:
            self._open[key] = [
                (policy.rule_ref(direction, index), rule)
                for policy in policies
                for index, rule in enumerate(policy.rules(direction))
                if not rule.peers or any(self.peer_matches(policy.namespace, peer, other) for peer in rule.peers)
            ]
        return self._open[key]


def block_matches(block: IPBlock, address: IPAddress | None) -> bool:
    """True if an address is in a block. An unknown address is only in a block that contains all addresses."""
    if address is None:
        return block.cidr.prefixlen == 0 and not block.excepts
    return address in block


def ports_match(ports: tuple[PortRule, ...], traffic: Traffic, destination: LabelSet | None) -> bool:
    """True if a rule's ports match; a rule without ports matches everything. Port names are those of the destination
    pod."""
    return not ports or any(port_matches(port, traffic, destination) for port in ports)


def port_matches(port: PortRule, traffic: Traffic, destination: LabelSet | None) -> bool:
    """True if one entry of ports matches."""
    if port.protocol is not traffic.protocol:
        return False
    if port.port is None:
        return True
    if isinstance(port.port, str):
        return destination is not None and traffic.port in destination.ports_named(port.port, port.protocol)
    return port.port <= traffic.port <= (port.end_port or port.port)
