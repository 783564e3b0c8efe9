"""Connections between groups -> the rules of NetworkPolicies, as manifests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from typing import Protocol as Interface

from netpolicy.party import Traffic
from netpolicy.suggest.groups import Group
from netpolicy.types import NAMESPACE_NAME_LABEL, Direction, IPAddress, IPNetwork, Operator, Protocol, Selector

# An end of a connection: pods, an address outside of what policy selects by labels, or all such addresses.
Other = Group | IPAddress | IPNetwork
EVERYTHING: Mapping[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
Object = dict[str, Any]
# A port: protocol, and name or number.
_Port = tuple[Protocol, int | str]
_SIDE = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_DNS: tuple[_Port, ...] = ((Protocol.UDP, 53), (Protocol.TCP, 53))
# The usual DNS servers, for records without any.
_USUAL_DNS = {
    "namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}


class Wanted(Interface):
    """The part of suggest.Wish that is used here."""

    @property
    def dns(self) -> bool: ...


class Traffics:
    """The ports of each pair of ends, by subject and direction."""

    def __init__(self, wish: Wanted, dns_servers: Sequence[Group], pod_networks: Sequence[IPNetwork] = ()) -> None:
        self._dns = wish.dns
        self._pod_networks = sorted(set(pod_networks), key=str)
        self._servers = dns_servers
        self._ports: dict[tuple[Group, Direction], dict[Other, set[_Port]]] = defaultdict(lambda: defaultdict(set))

    def add(self, source: Other, destination: Other, traffic: Traffic) -> None:
        """Allow one connection at both ends. `traffic` must have a protocol."""
        assert traffic.protocol is not None
        port: _Port = (traffic.protocol, traffic.port)
        if isinstance(destination, Group):
            port = (traffic.protocol, destination.port_name(traffic.protocol, traffic.port) or traffic.port)
            self._ports[destination, Direction.INGRESS][source].add(port)
        if isinstance(source, Group):
            is_dns = self._dns and destination in self._servers and traffic.port == 53
            if not is_dns:
                self._ports[source, Direction.EGRESS][destination].add(port)

    def rules(self, subject: Group, direction: Direction) -> list[Object]:
        """The rules of one group. Peers with the same ports share a rule, so no rule allows more than the pairs."""
        peers = self._ports.get((subject, direction), {})
        shared: dict[tuple[_Port, ...], list[Other]] = defaultdict(list)
        for other, ports in peers.items():
            shared[tuple(sorted(ports, key=_order))].append(other)
        found = [
            {_SIDE[direction]: self._peers(others, subject.namespace), "ports": [_port(port) for port in ports]}
            for ports, others in sorted(shared.items(), key=lambda item: [_order(port) for port in item[0]])
        ]
        return found + self._dns_rules(subject, direction)

    def _dns_rules(self, subject: Group, direction: Direction) -> list[Object]:
        """Every pod may ask DNS, and the servers answer everybody."""
        ports = [_port(port) for port in _DNS]
        if not self._dns:
            return []
        if direction is Direction.EGRESS:
            peers = self._peers(self._servers, subject.namespace) or [_USUAL_DNS]
            return [{_SIDE[direction]: peers, "ports": ports}]
        return [{_SIDE[direction]: [{"namespaceSelector": {}}], "ports": ports}] if subject in self._servers else []

    def _peers(self, others: Iterable[Other], namespace: str) -> list[Object]:
        ordered = sorted(others, key=lambda each: (not isinstance(each, Group), str(each)))
        return [self._peer(other, namespace) for other in ordered]

    def _peer(self, other: Other, namespace: str) -> Object:
        if isinstance(other, IPv4Network | IPv6Network):
            # The addresses of pods are not outside.
            holes = [str(each) for each in self._pod_networks if each.version == other.version]
            return {"ipBlock": {"cidr": str(other), **({"except": holes} if holes else {})}}
        if not isinstance(other, Group):
            return {"ipBlock": {"cidr": f"{other}/{other.max_prefixlen}"}}
        peer: Object = {"podSelector": _selector(other.selector)}
        if other.namespace != namespace:
            peer = {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: other.namespace}}, **peer}
        return peer


def policy(subject: Group, name: str, found: Mapping[Direction, list[Object]]) -> Object:
    """A policy that isolates a group in both directions."""
    spec: Object = {"podSelector": _selector(subject.selector), "policyTypes": ["Ingress", "Egress"]}
    spec |= {str(direction): rules for direction, rules in found.items() if rules}
    return _manifest(subject.namespace, name, spec)


def default_deny(namespace: str, name: str) -> Object:
    return _manifest(namespace, name, {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})


def _manifest(namespace: str, name: str, spec: Object) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _selector(selector: Selector) -> Object:
    labels = {r.key: r.values[0] for r in selector.requirements if r.operator is Operator.IN}
    others = [
        {"key": r.key, "operator": str(r.operator), **({"values": list(r.values)} if r.values else {})}
        for r in selector.requirements
        if r.operator is not Operator.IN
    ]
    return {**({"matchLabels": labels} if labels else {}), **({"matchExpressions": others} if others else {})}


def _port(port: _Port) -> Object:
    protocol, number = port
    return {"protocol": str(protocol), "port": number}


def _order(port: _Port) -> tuple[str, str, int]:
    protocol, number = port
    return (str(protocol), number, 0) if isinstance(number, str) else (str(protocol), "", number)
