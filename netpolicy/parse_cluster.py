"""policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy objects -> ClusterPolicy.

The validation is that of the schema of the CustomResourceDefinition (experimental channel). As in `parse`, `read` reads
an object as far as possible, and `cluster_policy` raises for the first problem.

What cannot be read closes: an Accept rule with such a part matches nothing, and a Deny or Pass rule denies everything
(the API reference, for peers of a newer version). So does a rule with `domainNames`, which are not enforced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, TypeVar

from netpolicy.fields import Field, is_dns_subdomain, labels, port_number, shown
from netpolicy.reading import Reader
from netpolicy.types import (
    Action,
    ClusterPolicy,
    Direction,
    IPBlock,
    IPNetwork,
    Peer,
    PolicyError,
    PortRule,
    Problem,
    Protocol,
    Rule,
    Selector,
    Tier,
)

T = TypeVar("T")

GROUP = "policy.networking.k8s.io"
API_VERSION = f"{GROUP}/v1alpha2"
KIND = "ClusterNetworkPolicy"
TIERS = (Tier.ADMIN, Tier.BASELINE)
STRONGEST, WEAKEST = 0, 1000
# The largest number of rules, peers, networks, domain names and protocols in a list.
MOST = 25
LONGEST_NAME = 100
_LONGEST_CIDR = 43

_SPEC = ("tier", "priority", "subject", "ingress", "egress")
_PODS = ("namespaceSelector", "podSelector")
_SUBJECT = ("namespaces", "pods")
_PEER = {
    Direction.INGRESS: ("namespaces", "pods"),
    Direction.EGRESS: ("namespaces", "pods", "nodes", "networks", "domainNames"),
}
_CIDR = re.compile(r"[0-9a-fA-F.:]+/(0|[1-9][0-9]{0,2})")
_SIDE = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP}
_NAMED_PORT = "destinationNamedPort"
# The schema's pattern, which also accepts what is between Z and a in ASCII.
_DOMAIN = re.compile(r"(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?")

# The effect of what cannot be read.
CLOSED = {
    Action.ACCEPT: "this rule accepts nothing",
    Action.DENY: "this rule denies everything",
    Action.PASS: "this rule denies everything",
}
ALL_CLOSED = "no rule of this policy accepts anything, and its other rules deny everything"
DENIED = "everything in this direction is denied"
NOT_ENFORCED = "domainNames are not enforced"
EVERY_POD = f"the policy selects every pod; {ALL_CLOSED}"
AS_ADMIN = f"the policy counts as one of the tier Admin; {ALL_CLOSED}"
AS_STRONGEST = f"the policy has the strongest priority; {ALL_CLOSED}"

_EVERYTHING = Selector()
# Stands for domainNames among the peers of a rule.
_DOMAINS = Peer()


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy, and all errors that an API server or `kubectl --validate=strict` would report, in the order found. An
    API server does not report those of the type UnreadableError."""

    policy: ClusterPolicy
    errors: tuple[PolicyError, ...]


def cluster_policy(obj: Mapping[str, Any]) -> ClusterPolicy:
    """Read one object. Raises PolicyError for the first thing that the API server would reject, including unknown
    fields, or that has no meaning."""
    found = read(obj)
    for error in found.errors:
        raise error
    return found.policy


def is_cluster_policy(obj: Mapping[str, Any]) -> bool:
    """True for an object of the kind, of any version: `read` reports another version."""
    return obj.get("kind") == KIND and str(obj.get("apiVersion") or "").rpartition("/")[0] == GROUP


def read(obj: Mapping[str, Any]) -> Reading:
    """Read one object as far as possible. Raises PolicyError only if its name cannot be read."""
    name = Field(KIND, "metadata", obj.get("metadata")).present().child("name")
    if not name.text():
        raise name.expected("a DNS name (a-z 0-9 - .)")
    reader = _Reader()
    if not is_dns_subdomain(name.value):
        reader.errors.append(name.expected("a DNS name (a-z 0-9 - .)"))
    root = Field(f"{KIND} {name.value}", "", obj)
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        word = root.child(key)
        if not word.absent and word.value != wanted:  # items of an API list have neither
            reader.errors.append(word.expected(wanted))
    reader.check(lambda: labels(root.child("metadata").child("labels")))
    reader.check(lambda: root.only(("apiVersion", "kind", "metadata", "spec", "status")))
    policy = reader.spec(root.child("spec"), name.value)
    return Reading(replace(policy, **_version(obj["metadata"])), tuple(reader.errors))


def _version(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Which version of the object this is. The server sets both; in a manifest they may be anything."""
    generation, uid = metadata.get("generation"), metadata.get("uid")
    return {
        "generation": generation if isinstance(generation, int) else 0,
        "uid": uid if isinstance(uid, str) else "",
    }


class _Reader(Reader):
    """Reads the parts of a ClusterNetworkPolicy."""

    def spec(self, spec: Field, name: str) -> ClusterPolicy:
        readable = self.attempt(EVERY_POD, spec.present)
        if readable is None:
            closed = (_closed(Action.DENY),)
            return ClusterPolicy(
                name, Tier.ADMIN, STRONGEST, Peer(namespaces=_EVERYTHING), closed, closed, tuple(self.problems)
            )
        known = self.attempt(ALL_CLOSED, lambda: _only(spec, _SPEC))
        tier = self.attempt(AS_ADMIN, lambda: Tier(_word(spec.child("tier"), TIERS)))
        priority = self.attempt(AS_STRONGEST, lambda: _priority(spec.child("priority")))
        subject = self.attempt(EVERY_POD, lambda: self._pods(spec.child("subject"), _SUBJECT))
        ingress = self._rules(spec.child("ingress"), Direction.INGRESS)
        egress = self._rules(spec.child("egress"), Direction.EGRESS)
        if any(part is None for part in (known, tier, priority, subject)):
            # Which traffic the rules are about, or what is stronger than they are, is not known.
            ingress, egress = (tuple(rule.closed() for rule in rules) for rules in (ingress, egress))
        return ClusterPolicy(
            name,
            tier or Tier.ADMIN,
            STRONGEST if priority is None else priority,
            subject or Peer(namespaces=_EVERYTHING),
            ingress,
            egress,
            tuple(self.problems),
        )

    def _rules(self, section: Field, direction: Direction) -> tuple[Rule, ...]:
        # The place of a rule is part of its strength, so there are not more than the API allows.
        items = self.attempt(DENIED, lambda: _few(section))
        if items is None:
            return (_closed(Action.DENY),)
        return tuple(self._rule(item, direction) for item in items)

    def _rule(self, rule: Field, direction: Direction) -> Rule:
        effect = CLOSED[Action.DENY]
        if self.attempt(effect, rule.present) is None:
            return _closed(Action.DENY)
        action = self.attempt(effect, lambda: Action(_word(rule.child("action"), tuple(Action))))
        name = self._name(rule.child("name"))
        closing = CLOSED[action or Action.DENY]
        side = _SIDE[direction]
        known = self.attempt(closing, lambda: _only(rule, ("name", "action", side, "protocols")))
        peers = self._peers(rule.child(side), direction, closing)
        ports = self._ports(rule, direction, closing)
        if action is None or known is None or peers is None or ports is None:
            return _closed(action or Action.DENY, name)
        if any(peer is _DOMAINS for peer in peers):
            return _closed(action, name)
        return Rule(peers, ports, action, name)

    def _name(self, field: Field) -> str:
        """A name without use is no name."""
        if field.absent:
            return ""
        self.check(lambda: _at_most_characters(field, LONGEST_NAME))
        return str(field.value)[:LONGEST_NAME] if isinstance(field.value, str) else ""

    def _peers(self, side: Field, direction: Direction, effect: str) -> tuple[Peer, ...] | None:
        """None if one of them cannot be read."""
        items = self.attempt(effect, lambda: _listed(side))
        if items is None:
            return None
        self.check(lambda: _at_most(side, len(items)))
        found = [self.attempt(effect, partial(self._peer, item, direction, effect)) for item in items]
        return None if any(peers is None for peers in found) else tuple(peer for peers in found for peer in peers or ())

    def _peer(self, peer: Field, direction: Direction, effect: str) -> tuple[Peer, ...]:
        nodes, networks, domains = (peer.present().child(key) for key in ("nodes", "networks", "domainNames"))
        if direction is Direction.INGRESS or (nodes.absent and networks.absent and domains.absent):
            return (self._pods(peer, _PEER[direction]),)
        _one_of(peer, _PEER[direction])
        if not nodes.absent:
            return (Peer(nodes=self._labels(_object(nodes))),)
        if not networks.absent:
            return tuple(Peer(block=IPBlock(network)) for network in self._each(networks, _network))
        self._each(domains, _domain)
        self.problems.append(Problem(domains.path, NOT_ENFORCED, effect))
        return (_DOMAINS,)

    def _pods(self, field: Field, known: tuple[str, ...]) -> Peer:
        """Pods by the labels of their namespaces, and perhaps by their own."""
        _one_of(field, known)
        namespaces, pods = field.child("namespaces"), field.child("pods")
        if not namespaces.absent:
            return Peer(namespaces=self._labels(_object(namespaces)))
        _only(pods, _PODS)
        of_namespace, of_pod = (pods.child(key) for key in _PODS)
        # The schema requires only one of them: the other one, if it is absent, selects all namespaces.
        return Peer(pods=self._labels(_object(of_pod)), namespaces=self._labels(of_namespace))

    def _labels(self, field: Field) -> Selector:
        """A label selector. Unlike a built-in kind, a custom resource cannot have null in it."""
        if not field.absent:
            _only(field, ("matchLabels", "matchExpressions"))
        for item in field.child("matchExpressions").items():
            _only(item, ("key", "operator", "values"))
        return self.selector(field)

    def _each(self, items: Field, read: Callable[[Field], T]) -> list[T]:
        """The items of a set: at least one, and none twice."""
        found = _listed(items)
        self.check(lambda: _at_most(items, len(found)))
        seen: list[Any] = []
        for item in found:
            if item.value in seen:
                self.errors.append(item.error(f"expected each value once, got {shown(item.value)} again"))
            seen.append(item.value)
        return [read(item) for item in found]

    def _ports(self, rule: Field, direction: Direction, effect: str) -> tuple[PortRule, ...] | None:
        """No ports: all traffic. None if one cannot be read."""
        section = rule.child("protocols")
        if section.absent:
            return ()
        items = self.attempt(effect, lambda: _listed(section))
        if items is None:
            return None
        self.check(lambda: _at_most(section, len(items)))
        found = [self.attempt(effect, partial(_ports_of, item)) for item in items]
        if direction is Direction.EGRESS and self.attempt(effect, lambda: _named_ports_fit(rule)) is None:
            return None
        return None if any(ports is None for ports in found) else tuple(port for ports in found for port in ports or ())


def _closed(action: Action, name: str = "") -> Rule:
    return Rule(action=action, name=name).closed()


def _only(field: Field, known: tuple[str, ...]) -> Field:
    """Returns the field. Raises PolicyError for an unknown key, and for null, which a custom resource cannot have."""
    field.present().only(known)
    for key in field.mapping():
        if field.child(key).absent:
            raise field.child(key).expected("a value")
    return field


def _object(field: Field) -> Field:
    """A field that must be present, but may be empty."""
    if field.absent:
        raise field.expected("a label selector ({} for everything)")
    return field


def _one_of(field: Field, known: tuple[str, ...]) -> Field:
    """Returns the field. Raises PolicyError unless exactly one of the known keys is set."""
    if field.absent:
        raise field.expected("exactly one of " + ", ".join(known))
    _only(field, known)
    if len(field.mapping()) != 1:
        names = ", ".join(field.mapping()) or "none"
        raise field.error(f"expected exactly one of {', '.join(known)}, got {names}")
    return field


def _word(field: Field, words: tuple[str, ...]) -> str:
    if not isinstance(field.value, str):
        raise field.expected("one of " + ", ".join(words))
    return field.one_of(words)


def _priority(field: Field) -> int:
    if not STRONGEST <= field.number() <= WEAKEST:
        raise field.expected(f"{STRONGEST}-{WEAKEST}")
    return field.number()


def _listed(field: Field) -> list[Field]:
    """The items of a list that must have some."""
    items = list(field.items())
    if not items:
        raise field.expected("at least one item")
    return items


def _few(field: Field) -> list[Field]:
    items = list(field.items())
    _at_most(field, len(items))
    return items


def _at_most(field: Field, number: int) -> None:
    if number > MOST:
        raise field.error(f"expected at most {MOST} items, got {number}")


def _at_most_characters(field: Field, number: int) -> None:
    if len(field.text()) > number:
        raise field.error(f"expected at most {number} characters, got {len(field.value)}")


def _network(field: Field) -> IPNetwork:
    """As netip.ParsePrefix of Go reads it (the schema's isCIDR): without leading zeros, zones or IPv4-mapped
    addresses."""
    text = field.text()
    expected = "a CIDR such as 10.0.0.0/8 or 2001:db8::/64"
    if not _CIDR.fullmatch(text) or len(text) > _LONGEST_CIDR:
        raise field.expected(expected)
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        raise field.expected(expected) from None
    address = ip_address(text.partition("/")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise field.expected(f"{expected}, not an IPv4-mapped address")
    return found


def _domain(field: Field) -> str:
    if not _DOMAIN.fullmatch(field.text()):
        raise field.expected("a domain name such as example.com or *.example.com")
    return field.text()


def _ports_of(item: Field) -> tuple[PortRule, ...]:
    """One entry of protocols. A named port has no protocol: it is every port of that name."""
    _one_of(item, (*_PROTOCOLS, _NAMED_PORT))
    name = item.child(_NAMED_PORT)
    if not name.absent:
        # The API server removes an empty name, which means that there is none.
        return tuple(PortRule(protocol, name.text()) for protocol in Protocol)
    ((key, protocol),) = ((key, protocol) for key, protocol in _PROTOCOLS.items() if not item.child(key).absent)
    field = item.child(key)
    if not _only(field, ("destinationPort",)).mapping():
        raise field.expected("destinationPort")
    port = _one_of(field.child("destinationPort"), ("number", "range"))
    number, wide = port.child("number"), port.child("range")
    if not number.absent:
        return (PortRule(protocol, port_number(number)),)
    start, end = (port_number(_only(wide, ("start", "end")).child(key)) for key in ("start", "end"))
    if start >= end:
        raise wide.error(f"expected start below end, got {start} and {end}")
    return (PortRule(protocol, start, end),)


def _named_ports_fit(rule: Field) -> bool:
    """Raises PolicyError for a named port together with peers that have no named ports."""
    names = any(_has(item, (_NAMED_PORT,)) for item in rule.child("protocols").items())
    nameless = ("networks", "nodes", "domainNames")
    if names and any(_has(item, nameless) for item in rule.child("to").items()):
        raise rule.error(f"{', '.join(nameless)} cannot be combined with {_NAMED_PORT}")
    return True


def _has(item: Field, keys: tuple[str, ...]) -> bool:
    return isinstance(item.value, Mapping) and any(item.value.get(key) is not None for key in keys)
