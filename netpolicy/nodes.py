"""Peers that select nodes: they stand for the addresses of the nodes with these labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Protocol

from netpolicy.selectors import matches
from netpolicy.types import ClusterPolicy, IPAddress, IPBlock, IPNetwork, Peer, Rule, Selector


class HasAddresses(Protocol):
    """The attributes that a node must have here. `outer`: its addresses as seen from outside the cluster."""

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]: ...

    @property
    def outer(self) -> tuple[IPAddress, ...]: ...


def node_addresses(selector: Selector, nodes: Iterable[HasAddresses]) -> set[IPAddress]:
    """All addresses in the status of the nodes with these labels."""
    return {ip for node in nodes if matches(selector, node.labels) for ip in (*node.addresses, *node.outer)}


def selects_nodes(policy: ClusterPolicy) -> bool:
    """True if `with_addresses` depends on the nodes."""
    return any(peer.nodes is not None for rule in policy.egress for peer in rule.peers)


def with_addresses(policy: ClusterPolicy, nodes: Iterable[HasAddresses]) -> ClusterPolicy:
    """The policy with blocks of one address each in place of peers that select nodes."""
    if not selects_nodes(policy):
        return policy
    known = tuple(nodes)
    return replace(policy, egress=tuple(_rule(rule, known) for rule in policy.egress))


def _rule(rule: Rule, nodes: tuple[HasAddresses, ...]) -> Rule:
    if not any(peer.nodes is not None for peer in rule.peers):
        return rule
    peers: list[Peer] = []
    for peer in rule.peers:
        if peer.nodes is None:
            peers.append(peer)
            continue
        found = sorted(node_addresses(peer.nodes, nodes), key=lambda ip: (ip.version, int(ip)))
        peers += [Peer(block=IPBlock(_host(address))) for address in found]
    # A rule without peers would match everybody.
    return replace(rule, peers=tuple(peers) or (Peer(),))


def _host(address: IPAddress) -> IPNetwork:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)
