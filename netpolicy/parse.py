"""networking.k8s.io/v1 NetworkPolicy objects -> NetworkPolicy, with the validation and defaults of the API server.

The rules are those of the API reference and of the API server's validation of this kind.

The parser can be used in two ways. `read` rejects only an object without a readable name or namespace. Any other part
that it cannot read isolates and allows nothing, and is listed. It is for objects that an API server, perhaps a newer
one, has accepted. `network_policy` raises for the first problem: it is for manifests, whose author can correct them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from netpolicy.addresses import parse_network
from netpolicy.fields import (
    Field,
    is_dns_label,
    is_dns_subdomain,
    labels,
    port_name,
    port_number,
    shown,
)
from netpolicy.reading import Reader
from netpolicy.types import (
    NOTHING,
    Direction,
    IPBlock,
    IPNetwork,
    NetworkPolicy,
    Peer,
    PolicyError,
    PortRule,
    Protocol,
    Rule,
    Selector,
)

API_VERSION = "networking.k8s.io/v1"
_POLICY_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_SPEC = ("podSelector", "policyTypes", "ingress", "egress")
_PEER = ("podSelector", "namespaceSelector", "ipBlock")
_PORT = ("protocol", "port", "endPort")

# The effect of a part that cannot be read. Each makes the policy allow less, never more.
NO_PEER = "this peer matches nothing"
NO_PORT = "this port matches nothing"
NO_RULE = "this rule allows nothing"
NO_RULES = "no rule of this direction allows anything"
NO_POLICY = "no rule of this policy allows anything"
EVERY_POD = "the policy isolates every pod of its namespace, and allows nothing"
BOTH = "the policy isolates in both directions"
BOTH_AND_NAMED = f"{BOTH}; only rules of a direction that is named apply"


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy, and all errors that an API server or `kubectl --validate=strict` would report, in the order found."""

    policy: NetworkPolicy
    errors: tuple[PolicyError, ...]


def network_policy(obj: Mapping[str, Any]) -> NetworkPolicy:
    """Read one object. Raises PolicyError for the first thing that the API server would reject, including unknown
    fields, which kubectl asks it to reject."""
    found = read(obj)
    for error in found.errors:
        raise error
    return found.policy


def read(obj: Mapping[str, Any]) -> Reading:
    """Read one object as far as possible. Raises PolicyError only if its name or namespace cannot be read."""
    metadata = Field("NetworkPolicy", "metadata", obj.get("metadata")).present()
    name = metadata.child("name")
    if not name.text():
        raise name.expected("a DNS name (a-z 0-9 - .)")
    namespace = metadata.child("namespace")
    where = "default" if namespace.absent else namespace.text()
    reader = _Reader()
    if not is_dns_subdomain(name.text()):
        reader.errors.append(name.expected("a DNS name (a-z 0-9 - .)"))
    if not is_dns_label(where):
        reader.errors.append(namespace.expected("a DNS label (a-z 0-9 -, at most 63)"))
    root = Field(f"NetworkPolicy {where}/{name.value}", "", obj)
    for key, wanted in (("apiVersion", API_VERSION), ("kind", "NetworkPolicy")):
        word = root.child(key)
        if not word.absent and word.value != wanted:  # items of an API list have neither
            reader.errors.append(word.expected(wanted))
    reader.check(lambda: labels(root.child("metadata").child("labels")))
    reader.check(lambda: root.only(("apiVersion", "kind", "metadata", "spec", "status")))
    policy = reader.spec(root.child("spec"), where, name.value)
    return Reading(policy, tuple(reader.errors))


class _Reader(Reader):
    """Reads the parts of a NetworkPolicy."""

    def spec(self, spec: Field, namespace: str, name: str) -> NetworkPolicy:
        if self.attempt(f"{EVERY_POD}; {BOTH}", spec.mapping) is None:
            return NetworkPolicy(namespace, name, Selector(), frozenset(Direction), problems=tuple(self.problems))
        known = self.attempt(NO_POLICY, lambda: spec.only(_SPEC))
        pods = self.attempt(EVERY_POD, lambda: self.selector(spec.child("podSelector")))
        ingress, egress = self._rules(spec.child("ingress"), "from"), self._rules(spec.child("egress"), "to")
        directions = self._directions(spec.child("policyTypes"), bool(egress))
        if directions is None:
            # A direction that the policy may not name must not get its rules: they would widen what others isolate.
            directions, named = frozenset(Direction), _readable_types(spec.child("policyTypes"))
            ingress = ingress if Direction.INGRESS in named else tuple(NOTHING for _ in ingress)
            egress = egress if Direction.EGRESS in named else tuple(NOTHING for _ in egress)
        if known is None or pods is None:
            # An unknown field may restrict every rule. If the podSelector is unreadable, pods that the policy may not
            # select must not get its rules.
            ingress, egress = tuple(NOTHING for _ in ingress), tuple(NOTHING for _ in egress)
        if known is None and spec.child("policyTypes").absent:
            # API servers always set policyTypes. If it is absent, the unknown field may replace it, so isolate both
            # directions.
            directions = frozenset(Direction)
        selector = Selector() if pods is None else pods
        return NetworkPolicy(namespace, name, selector, directions, ingress, egress, tuple(self.problems))

    def _directions(self, types: Field, has_egress_rules: bool) -> frozenset[Direction] | None:
        """None if policyTypes is unreadable."""

        def named() -> frozenset[Direction]:
            items = list(types.items())
            if len(items) > len(_POLICY_TYPES):
                raise types.expected("at most two policy types")
            return frozenset(_POLICY_TYPES[item.one_of(tuple(_POLICY_TYPES))] for item in items)

        found = self.attempt(BOTH_AND_NAMED, named)
        if found is None:
            return None
        return found or (frozenset(Direction) if has_egress_rules else frozenset({Direction.INGRESS}))

    def _rules(self, section: Field, side: str) -> tuple[Rule, ...]:
        """A section that is not a list becomes one rule that allows nothing: the section is present, so egress
        isolates."""
        items = self.attempt(NO_RULES, lambda: list(section.items()))
        return (NOTHING,) if items is None else tuple(self._rule(item, side) for item in items)

    def _rule(self, rule: Field, side: str) -> Rule:
        if self.attempt(NO_RULE, lambda: rule.present().only(("ports", side))) is None:
            return NOTHING
        peers = self.attempt(NO_RULE, lambda: list(rule.child(side).items()))
        ports = self.attempt(NO_RULE, lambda: list(rule.child("ports").items()))
        if peers is None or ports is None:
            return NOTHING
        matched = [self.attempt(NO_PEER, partial(self._peer, item)) for item in peers]
        opened = [self.attempt(NO_PORT, partial(_port, item)) for item in ports]
        found = tuple(port for port in opened if port is not None)
        if ports and not found:
            return NOTHING  # a rule without ports would mean every port
        # An unreadable peer stays, and matches nothing: an empty list would mean all peers.
        return Rule(tuple(peer or Peer() for peer in matched), found)

    def _peer(self, peer: Field) -> Peer:
        peer.present().only(_PEER)
        pods, namespaces, block = (peer.child(key) for key in _PEER)
        if not block.absent and not (pods.absent and namespaces.absent):
            raise block.error("ipBlock cannot be combined with podSelector or namespaceSelector")
        if pods.absent and namespaces.absent and block.absent:
            raise peer.error("expected podSelector, namespaceSelector or ipBlock")
        return Peer(
            None if pods.absent else self.selector(pods),
            None if namespaces.absent else self.selector(namespaces),
            None if block.absent else _block(block),
        )


def _port(port: Field) -> PortRule:
    port.present().only(_PORT)
    protocol, number, end = (port.child(key) for key in _PORT)
    named = Protocol.TCP if protocol.absent else Protocol(protocol.one_of(tuple(Protocol)))
    if number.absent:
        if not end.absent:
            raise end.error("endPort needs a port")
        return PortRule(named)
    if isinstance(number.value, str):
        if not end.absent:
            raise end.error(f"endPort needs a numeric port, got {shown(number.value)}")
        return PortRule(named, port_name(number))
    first = port_number(number)
    if end.absent:
        return PortRule(named, first)
    if end.number() < first:
        raise end.expected(f"port {first} or more")
    return PortRule(named, first, port_number(end))


def _block(block: Field) -> IPBlock:
    """If one except cannot be read, the whole block is unreadable: without it the block would allow more."""
    block.only(("cidr", "except"))
    cidr = _cidr(block.child("cidr"))
    excepts = []
    for item in block.child("except").items():
        hole = _cidr(item)
        inside = hole.version == cidr.version and hole.network_address in cidr and hole.prefixlen > cidr.prefixlen
        if not inside:
            raise item.error(f"expected a part of {cidr}, smaller than it, got {shown(item.value)}")
        excepts.append(hole)
    return IPBlock(cidr, tuple(excepts))


def _cidr(field: Field) -> IPNetwork:
    text = field.text()
    try:
        return parse_network(text)
    except ValueError:
        raise field.expected("a CIDR such as 10.0.0.0/8 or 2001:db8::/64") from None


def _readable_types(types: Field) -> frozenset[Direction]:
    """The directions that the readable items of policyTypes name."""
    items = types.value if isinstance(types.value, list | tuple) else ()
    return frozenset(_POLICY_TYPES[item] for item in items if isinstance(item, str) and item in _POLICY_TYPES)
