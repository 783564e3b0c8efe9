"""Whether peers and ports of rules match an end of a connection and its traffic."""

from __future__ import annotations

from collections.abc import Iterable

from netpolicy.nodes import HasAddresses, node_addresses
from netpolicy.party import Party, Traffic
from netpolicy.selectors import Namespaces, peer_selects
from netpolicy.types import IPAddress, IPBlock, LabelSet, Peer, PortRule, Rule, Selector


class Matcher:
    """Compares peers with the ends of connections. Caches the results."""

    def __init__(self, namespaces: Namespaces, nodes: Iterable[HasAddresses] = ()) -> None:
        self.namespaces = namespaces
        self._nodes = tuple(nodes)
        self._node_addresses: dict[Selector, frozenset[IPAddress]] = {}
        self._selected: dict[tuple[str, Peer, LabelSet], bool] = {}

    def peer_matches(self, namespace: str, peer: Peer, other: Party) -> bool:
        """True if a peer of a policy in `namespace` matches: by labels, or by address for ipBlocks and
        nodes."""
        if peer.block is not None:
            return block_matches(peer.block, other.address)
        if peer.nodes is not None:
            return other.address in self._addresses(peer.nodes)
        if other.labels is None:
            return False
        key = (namespace, peer, other.labels)
        if key not in self._selected:
            self._selected[key] = peer_selects(peer, namespace, other.labels, self.namespaces)
        return self._selected[key]

    def _addresses(self, nodes: Selector) -> frozenset[IPAddress]:
        if nodes not in self._node_addresses:
            self._node_addresses[nodes] = frozenset(node_addresses(nodes, self._nodes))
        return self._node_addresses[nodes]

    def rule_is_about(self, namespace: str, rule: Rule, other: Party) -> bool:
        """True if the peers of a rule match, for any port. A rule without peers matches everybody."""
        return not rule.peers or any(self.peer_matches(namespace, peer, other) for peer in rule.peers)


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
