"""What another set of policies changes: connections between pods, and with addresses outside the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from netpolicy.cluster import Cluster, ContainerPort, Node, Pod
from netpolicy.evaluate import Evaluator
from netpolicy.matrix import matrix_for
from netpolicy.party import Party, Traffic
from netpolicy.recorded import Seen
from netpolicy.replay import Directory, replayed
from netpolicy.types import Direction, IPAddress, IPNetwork, Policy, Protocol

# Ports of addresses outside, beside those that egress rules name.
_USUAL = (ContainerPort(443), ContainerPort(53, Protocol.UDP))
# Addresses that stand for all that no ipBlock names; they are for documentation (RFC 5737, RFC 3849).
_ANY: tuple[IPAddress, ...] = (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
_ALL: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class Change:
    """A connection with another verdict. The ends are pods (NS/NAME) or addresses; `source_group` and
    `destination_group` name the workloads of pods, and "outside (ADDRESS)"."""

    source: str
    destination: str
    port: int
    protocol: str
    before: bool
    after: bool
    source_group: str
    destination_group: str

    def as_json(self) -> dict[str, Any]:
        return {
            "from": self.source,
            "to": self.destination,
            "port": self.port,
            "protocol": self.protocol,
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """`compared`: how many connections were computed."""

    changes: tuple[Change, ...]
    compared: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of recorded connections. `cut`: allowed before, denied after. `opened`: denied when they were
    recorded, allowed after. `denied`: recorded as allowed, and denied by both sets: other policies were in force."""

    cut: tuple[Seen, ...]
    opened: tuple[Seen, ...]
    denied: tuple[Seen, ...]


def together(before: Cluster, after: Cluster) -> tuple[Cluster, Cluster]:
    """Both with the pods and nodes of either; what both have is that of `before`. Policies and the labels of
    namespaces stay as they are."""
    pods = {str(pod): pod for pod in (*after.pods, *before.pods)}
    every_pod = tuple(pods[name] for name in sorted(pods))
    nodes = tuple({node.name: node for node in (*after.nodes, *before.nodes)}.values())
    namespaces = {**before.namespaces, **after.namespaces}
    return (
        replace(before, pods=every_pod, nodes=nodes),
        replace(after, pods=every_pod, nodes=nodes, namespaces=namespaces),
    )


def compare(before: Cluster, after: Cluster, ports: Sequence[ContainerPort] | None = None) -> Difference:
    """All connections between pods, and between pods and one address of each range that ipBlocks tell apart. Both
    clusters must have the same pods (see `together`). `ports`: as for the matrix."""
    changes = []
    compared = 0
    groups = {str(pod): f"{pod.namespace}/{pod.workload}" for pod in before.pods}
    outside, outer_ports = _outside(before, after), _ports_outside(before, after, ports)
    tables = [_table(each, outside, outer_ports, ports) for each in (before, after)]
    for key, was in tables[0].items():
        compared += 1
        will = tables[1][key]
        if was is not will:
            source, destination, port, protocol = key
            names = (_group(groups, source), _group(groups, destination))
            changes.append(Change(source, destination, port, protocol, was, will, *names))
    return Difference(tuple(changes), compared)


def _group(groups: dict[str, str], name: str) -> str:
    return groups.get(name, f"outside ({name})")


def effect(passed: Iterable[Seen], denied: Iterable[Seen], before: Cluster, after: Cluster) -> Effect:
    """What becomes of recorded connections. ICMP is left out, because no rule can name it."""
    directory = Directory(before)

    def allowed(connections: Iterable[Seen], cluster: Cluster) -> dict[Seen, bool]:
        named = (seen for seen in connections if seen.traffic.protocol is not None)
        return {seen: verdict.allowed for seen, verdict in replayed(named, cluster, directory)}

    seen = list(passed)
    was, will = allowed(seen, before), allowed(seen, after)
    return Effect(
        tuple(each for each in will if was[each] and not will[each]),
        tuple(each for each, now in allowed(denied, after).items() if now),
        tuple(each for each in will if not was[each] and not will[each]),
    )


_Key = tuple[str, str, int, str]


def _table(
    cluster: Cluster,
    outside: Sequence[IPAddress],
    ports_outside: Sequence[ContainerPort],
    ports: Sequence[ContainerPort] | None,
) -> dict[_Key, bool]:
    cells = matrix_for(cluster, ports)
    found = {(c.source, c.destination, c.port, str(c.protocol)): c.allowed for c in cells}
    evaluator = Evaluator.of(cluster)
    for pod in cluster.pods:
        for address in outside:
            own = _facing(pod, address)
            if own is None or pod.host_network:
                continue
            other = Party(str(address), None, address)
            for port in pod.ports if ports is None else ports:
                traffic = Traffic(port.protocol, port.port)
                key = (str(address), str(pod), port.port, str(port.protocol))
                found[key] = evaluator.verdict(other, own, traffic).allowed
            for port in ports_outside:
                traffic = Traffic(port.protocol, port.port)
                key = (str(pod), str(address), port.port, str(port.protocol))
                found[key] = evaluator.verdict(own, other, traffic).allowed
    return found


def _facing(pod: Pod, address: IPAddress) -> Party | None:
    """The pod with an address of the same family; also a pod without a known address. None if it has another family
    only."""
    same = [ip for ip in pod.ips if ip.version == address.version]
    return None if pod.ips and not same else Party.of(pod, next(iter(same), None))


def _ports_outside(before: Cluster, after: Cluster, ports: Sequence[ContainerPort] | None) -> tuple[ContainerPort, ...]:
    """The ports to ask about addresses outside: the first one of each egress rule's range."""
    if ports is not None:
        return tuple(ports)
    named = [
        ContainerPort(port.port, port.protocol)
        for policy in (*before.every_policy, *after.every_policy)
        for rule in policy.rules(Direction.EGRESS)
        for port in rule.ports
        if isinstance(port.port, int)
    ]
    return tuple(dict.fromkeys((*_USUAL, *sorted(named, key=str))))


def _outside(before: Cluster, after: Cluster) -> list[IPAddress]:
    """One address of each range that the ipBlocks of both sets tell apart, none of them a pod's or a node's."""
    inside: set[IPAddress] = {ip for pod in before.pods for ip in pod.ips}
    inside |= {ip for node in before.nodes for ip in node.addresses}
    families = {ip.version for ip in inside} or {4}
    named: set[IPNetwork] = {
        *_blocks((*before.every_policy, *after.every_policy)),
        *(_ALL[family] for family in families),
    }
    taken: set[IPNetwork] = {*named, *map(_host, inside), *_pod_networks(before.nodes)}
    found = (_representative(network, taken) for network in sorted(named, key=_order))
    return list(dict.fromkeys(address for address in found if address is not None and address not in inside))


def _order(network: IPNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _blocks(policies: Iterable[Policy]) -> Iterator[IPNetwork]:
    for policy in policies:
        for rule in (*policy.ingress, *policy.egress):
            for peer in rule.peers:
                if peer.block is not None:
                    yield from (peer.block.cidr, *peer.block.excepts)


def _pod_networks(nodes: Iterable[Node]) -> Iterator[IPNetwork]:
    for node in nodes:
        yield from node.pod_cidrs


def _host(address: IPAddress) -> IPNetwork:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _representative(network: IPNetwork, taken: Iterable[IPNetwork]) -> IPAddress | None:
    """An address of a network that is in none of the smaller ones within it; None if they fill it."""
    smaller = [each for each in taken if each != network and _within(each, network)]
    for address in _ANY:
        if address in network and not any(address in each for each in smaller):
            return address
    place, last = int(network.network_address), int(network.broadcast_address)
    kind = IPv4Address if network.version == 4 else IPv6Address
    while place <= last:
        address = kind(place)
        ends = [int(each.broadcast_address) for each in smaller if address in each]
        if not ends:
            return address
        place = max(ends) + 1
    return None


def _within(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.prefixlen > other.prefixlen and one.network_address in other
