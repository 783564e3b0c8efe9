"""How many entries a subject needs, counted without making them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netpolicy.entries import named, prefixes
from netpolicy.peers import Peers
from netpolicy.regions import Regions
from netpolicy.types import Direction, NamedPort, Policy, PolicyRef, Rule


class DemandKey(NamedTuple):
    """Subjects with equal policies and equal named ports get the same entries; their other labels do not matter.

    `policies` are of one namespace, or ClusterNetworkPolicies, in the order of their strength.
    """

    policies: tuple[PolicyRef, ...]
    named_ports: tuple[NamedPort, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """How many entries one subject needs. `sizes`: for each of its policies, in their order. Entries that several rules
    give count once for each rule, so `total` is an upper bound."""

    key: DemandKey
    sizes: tuple[int, ...]
    total: int


class Sizes:
    """The number of entries that each policy gives a subject. `policies`: by namespace and name."""

    def __init__(self, policies: Mapping[str, Mapping[str, Policy]], peers: Peers) -> None:
        self._policies = policies
        self._peers = peers
        self._sizes: dict[PolicyRef, dict[tuple[NamedPort, ...], int]] = {}

    def forget(self, refs: Iterable[PolicyRef]) -> None:
        """Policies whose entries may differ now."""
        for ref in refs:
            self._sizes.pop(ref, None)

    def demand(self, key: DemandKey) -> Demand:
        sizes = tuple(self._size(ref, key.named_ports) for ref in key.policies)
        return Demand(key, sizes, sum(sizes))

    def _size(self, ref: PolicyRef, named_ports: tuple[NamedPort, ...]) -> int:
        known = self._sizes.setdefault(ref, {})
        if named_ports not in known:
            known[named_ports] = self.sized(ref, named_ports)
        return known[named_ports]

    def sized(self, ref: PolicyRef, named_ports: tuple[NamedPort, ...], regions: Regions | None = None) -> int:
        policy = self._policies[ref.namespace][ref.name]
        return sum(
            self._count(policy.namespace, direction, rule, named_ports, regions)
            for direction in policy.directions
            for rule in policy.rules(direction)
        )

    def _count(
        self,
        namespace: str,
        direction: Direction,
        rule: Rule,
        named_ports: tuple[NamedPort, ...],
        regions: Regions | None = None,
    ) -> int:
        """How many pairs Resolver._rule gives in all, or would give with other regions, without making them."""
        if not rule.peers:
            peers = 1
        else:
            blocks = [peer.block for peer in rule.peers if peer.block is not None]
            peers = len(self._peers.selected(namespace, rule.peers))
            peers += len({region for block in blocks for region in (regions or self._peers.regions).inside(block)})
        if not rule.ports:
            return peers
        found = 0
        for port in rule.ports:
            if not isinstance(port.port, str):
                found += peers * len(prefixes(port))
            elif direction is Direction.INGRESS:
                found += peers * len(named(port, named_ports))
            else:
                found += sum(1 for _ in self._peers.named_egress(port, namespace, rule.peers))
        return found
