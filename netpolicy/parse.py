"""networking.k8s.io/v1 NetworkPolicy objects -> NetworkPolicy, checked and defaulted as the API server does it.

The rules are those of the API reference and of the API server's own validation of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from netpolicy.fields import (
    Field,
    is_dns_label,
    is_dns_subdomain,
    label_key,
    label_value,
    labels,
    port_name,
    port_number,
)
from netpolicy.types import (
    Direction,
    IPBlock,
    IPNetwork,
    NetworkPolicy,
    Operator,
    Peer,
    PortRule,
    Protocol,
    Requirement,
    Rule,
    Selector,
)

API_VERSION = "networking.k8s.io/v1"
_POLICY_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_SPEC = ("podSelector", "policyTypes", "ingress", "egress")
_PEER = ("podSelector", "namespaceSelector", "ipBlock")
_PORT = ("protocol", "port", "endPort")


def network_policy(obj: Mapping[str, Any], strict: bool = True) -> NetworkPolicy:
    """Read one object. Raises PolicyError for what the API server would refuse.

    `strict` also refuses unknown fields, which is what kubectl asks for and what a manifest's author wants to hear.
    Without it (for objects that come from an API server, perhaps a newer one) unknown fields are passed over, and a
    peer made of nothing else matches nobody: the rule never opens more than it says.
    """
    metadata = Field("NetworkPolicy", "metadata", obj.get("metadata")).present()
    name = metadata.child("name")
    if not is_dns_subdomain(name.text()):
        raise name.expected("a DNS name (a-z 0-9 - .)")
    namespace = metadata.child("namespace")
    if not namespace.absent and not is_dns_label(namespace.text()):
        raise namespace.expected("a DNS label (a-z 0-9 -, at most 63)")
    where = namespace.value or "default"
    root = Field(f"NetworkPolicy {where}/{name.value}", "", obj)
    for key, wanted in (("apiVersion", API_VERSION), ("kind", "NetworkPolicy")):
        field = root.child(key)
        if not field.absent and field.value != wanted:  # items of an API list carry neither
            raise field.expected(wanted)
    labels(root.child("metadata").child("labels"))
    root.only(("apiVersion", "kind", "metadata", "spec", "status"), strict)
    return _spec(root.child("spec"), where, name.value, strict)


def _spec(spec: Field, namespace: str, name: str, strict: bool) -> NetworkPolicy:
    spec.only(_SPEC, strict)
    ingress = tuple(_rule(item, "from", strict) for item in spec.child("ingress").items())
    egress = tuple(_rule(item, "to", strict) for item in spec.child("egress").items())
    return NetworkPolicy(
        namespace,
        name,
        selector(spec.child("podSelector"), strict),
        _directions(spec.child("policyTypes"), bool(egress)),
        ingress,
        egress,
    )


def _directions(field: Field, has_egress_rules: bool) -> frozenset[Direction]:
    types = list(field.items())
    if len(types) > len(_POLICY_TYPES):
        raise field.expected("at most two policy types")
    if types:
        return frozenset(_POLICY_TYPES[item.one_of(tuple(_POLICY_TYPES))] for item in types)
    return frozenset(Direction) if has_egress_rules else frozenset({Direction.INGRESS})


def _rule(rule: Field, peers: str, strict: bool) -> Rule:
    rule.present().only(("ports", peers), strict)
    return Rule(
        tuple(_peer(item, strict) for item in rule.child(peers).items()),
        tuple(_port(item, strict) for item in rule.child("ports").items()),
    )


def _peer(peer: Field, strict: bool) -> Peer:
    newer = peer.present().only(_PEER, strict)
    pods, namespaces, block = (peer.child(key) for key in _PEER)
    if not block.absent and not (pods.absent and namespaces.absent):
        raise block.error("ipBlock stands alone: not together with podSelector or namespaceSelector")
    if pods.absent and namespaces.absent and block.absent and not newer:
        raise peer.error("expected podSelector, namespaceSelector or ipBlock")
    return Peer(
        None if pods.absent else selector(pods, strict),
        None if namespaces.absent else selector(namespaces, strict),
        None if block.absent else _block(block, strict),
    )


def _port(port: Field, strict: bool) -> PortRule:
    port.present().only(_PORT, strict)
    protocol, number, end = (port.child(key) for key in _PORT)
    named = Protocol.TCP if protocol.absent else Protocol(protocol.one_of(tuple(Protocol)))
    if number.absent:
        if not end.absent:
            raise end.error("endPort needs a port")
        return PortRule(named)
    if isinstance(number.value, str):
        if not end.absent:
            raise end.error(f"endPort needs a numeric port, got {number.value!r}")
        return PortRule(named, port_name(number))
    first = port_number(number)
    if end.absent:
        return PortRule(named, first)
    if end.number() < first:
        raise end.expected(f"port {first} or more")
    return PortRule(named, first, port_number(end))


def _block(block: Field, strict: bool) -> IPBlock:
    block.only(("cidr", "except"), strict)
    cidr = _cidr(block.child("cidr"))
    excepts = []
    for item in block.child("except").items():
        hole = _cidr(item)
        inside = hole.version == cidr.version and hole.network_address in cidr and hole.prefixlen > cidr.prefixlen
        if not inside:
            raise item.error(f"expected a part of {cidr}, smaller than it, got {item.value!r}")
        excepts.append(hole)
    return IPBlock(cidr, tuple(excepts))


def _cidr(field: Field) -> IPNetwork:
    """An address and a length; bits beyond the length are ignored, leading zeros too, as the API server reads it."""
    text = field.text()
    address, slash, length = text.partition("/")
    if "." in address and ":" not in address:
        address = ".".join(part.lstrip("0") or "0" if part else "" for part in address.split("."))
    try:
        if not slash or not length.isascii() or not length.isdigit():
            raise ValueError
        network = ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        raise field.expected("a CIDR such as 10.0.0.0/8 or 2001:db8::/64") from None
    if network.version == 6 and (network.network_address.ipv4_mapped is not None or "%" in address):
        raise field.expected("an IPv4 CIDR as a.b.c.d/n, or an IPv6 CIDR")
    return network


def selector(field: Field, strict: bool = True) -> Selector:
    """metav1.LabelSelector; absent and empty both match everything (a caller for whom absent differs asks first)."""
    field.only(("matchLabels", "matchExpressions"), strict)
    wanted = labels(field.child("matchLabels"))
    found = [Requirement(key, Operator.IN, (value,)) for key, value in sorted(wanted.items())]
    found += [_requirement(item, strict) for item in field.child("matchExpressions").items()]
    return Selector(tuple(found))


def _requirement(item: Field, strict: bool) -> Requirement:
    item.present().only(("key", "operator", "values"), strict)
    key = item.child("key")
    label_key(key, key.text())
    operator = Operator(item.child("operator").one_of(tuple(Operator)))
    values = item.child("values")
    found = tuple(sorted({label_value(value) for value in values.items()}))
    if operator in (Operator.IN, Operator.NOT_IN) and not found:
        raise values.error(f"operator {operator} needs at least one value")
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST) and found:
        raise values.error(f"operator {operator} takes no values, got {list(found)}")
    return Requirement(key.value, operator, found)
