"""From policies to entries: who may talk to a subject, by number, protocol and port prefix.

An entry's peer is the number of a label set or of a region of addresses, or ANY. A flow of an isolated subject is
allowed when an entry matches for its peer's label set, for the region of its peer's address, or for ANY.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from netpolicy.regions import Regions
from netpolicy.selectors import Index, Namespaces, matches
from netpolicy.types import Direction, LabelSet, NetworkPolicy, Peer, PolicyRef, PortRule, Protocol, Rule, RuleRef

ANY = 0
PORT_BITS = 16


class EntryKey(NamedTuple):
    """What an entry matches. `protocol` None: all of them; else the first `port_bits` bits of `port` (0: all ports)."""

    peer: int
    direction: Direction
    protocol: Protocol | None
    port: int
    port_bits: int


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """All that holds for one subject. A direction without isolating policies lets everything through.

    Where several rules give the same entry, the first in the order of policy name and index is named.
    """

    isolated: Mapping[Direction, tuple[PolicyRef, ...]]
    entries: Mapping[EntryKey, RuleRef]


class _Ports(NamedTuple):
    protocol: Protocol | None
    port: int
    port_bits: int


_ALL_PORTS = _Ports(None, 0, 0)


class Resolver:
    """Policies, label sets and regions of one moment; resolves many subjects and shares what they have in common."""

    def __init__(
        self,
        policies: Iterable[NetworkPolicy],
        namespaces: Namespaces,
        groups: Mapping[int, LabelSet],
        regions: Regions,
    ) -> None:
        self._groups = groups
        self._regions = regions
        self._index = Index(groups, namespaces)
        self._policies: dict[str, list[NetworkPolicy]] = {}
        for policy in sorted(policies, key=lambda p: p.ref):
            self._policies.setdefault(policy.namespace, []).append(policy)
        self._numbers: dict[tuple[str, tuple[Peer, ...]], list[int]] = {}
        self._resolved: dict[object, ResolvedPolicy] = {}

    def resolve(self, subject: LabelSet) -> ResolvedPolicy:
        """The policy of every pod with this label set."""
        policies = [p for p in self._policies.get(subject.namespace, ()) if matches(p.selector, subject.mapping)]
        # The same policies and the same named ports give the same answer: the other labels no longer matter.
        key = (tuple(p.ref for p in policies), subject.named_ports)
        if key not in self._resolved:
            self._resolved[key] = self._resolve(subject, policies)
        return self._resolved[key]

    def _resolve(self, subject: LabelSet, policies: list[NetworkPolicy]) -> ResolvedPolicy:
        isolated: dict[Direction, tuple[PolicyRef, ...]] = {}
        entries: dict[EntryKey, RuleRef] = {}
        for direction in Direction:
            refs = tuple(p.ref for p in policies if direction in p.directions)
            if refs:
                isolated[direction] = refs
            for policy in policies:
                for index, rule in enumerate(policy.rules(direction)):
                    ref = policy.rule_ref(direction, index)
                    for peer, ports in self._rule(policy.namespace, direction, rule, subject):
                        entries.setdefault(EntryKey(peer, direction, *ports), ref)
        return ResolvedPolicy(isolated, entries)

    def _rule(
        self, namespace: str, direction: Direction, rule: Rule, subject: LabelSet
    ) -> Iterator[tuple[int, _Ports]]:
        numbers = self._peers(namespace, rule.peers)
        if not rule.ports:
            yield from ((number, _ALL_PORTS) for number in numbers)
            return
        for port in rule.ports:
            if not isinstance(port.port, str):
                prefixes = _prefixes(port)
            elif direction is Direction.INGRESS:
                prefixes = _named(port, subject)
            else:
                yield from self._named_egress(port, namespace, rule.peers)
                continue
            yield from ((number, prefix) for number in numbers for prefix in prefixes)

    def _peers(self, namespace: str, peers: tuple[Peer, ...]) -> list[int]:
        """Numbers of the label sets and regions that peers match; ANY alone when there are none."""
        if not peers:
            return [ANY]
        key = (namespace, peers)
        if key not in self._numbers:
            found: set[int] = set()
            for peer in peers:
                if peer.block is not None:
                    found.update(self._regions.numbers[region] for region in self._regions.inside(peer.block))
                else:
                    found |= self._index.select(peer, namespace)
            self._numbers[key] = sorted(found)
        return self._numbers[key]

    def _named_egress(self, port: PortRule, namespace: str, peers: tuple[Peer, ...]) -> Iterator[tuple[int, _Ports]]:
        """A port name towards others means what each destination pod calls so; the world outside has no names."""
        everyone: Iterable[int] = sorted(self._groups)
        for number in everyone if not peers else self._peers(namespace, peers):
            if number in self._groups:
                yield from ((number, prefix) for prefix in _named(port, self._groups[number]))
        for block in (peer.block for peer in peers if peer.block is not None):
            for region in self._regions.inside(block):
                pod = self._regions.pods.get(region.prefix)
                if pod is not None:
                    yield from ((self._regions.numbers[region], prefix) for prefix in _named(port, pod))


def resolve(
    subject: LabelSet,
    policies: Iterable[NetworkPolicy],
    namespaces: Namespaces,
    groups: Mapping[int, LabelSet],
    regions: Regions,
) -> ResolvedPolicy:
    """Resolve one subject. `groups` are all label sets by number, `regions` those of these policies, numbered."""
    return Resolver(policies, namespaces, groups, regions).resolve(subject)


def _named(port: PortRule, pod: LabelSet) -> tuple[_Ports, ...]:
    return tuple(_Ports(port.protocol, number, PORT_BITS) for number in pod.ports_named(str(port.port), port.protocol))


def _prefixes(port: PortRule) -> tuple[_Ports, ...]:
    if port.port is None:
        return (_Ports(port.protocol, 0, 0),)
    first = int(port.port)
    return tuple(_Ports(port.protocol, *prefix) for prefix in port_prefixes(first, port.end_port or first))


@lru_cache(maxsize=4096)
def port_prefixes(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Least (port, leading bits) pairs that cover first..last, both included, and nothing else."""
    found = []
    while first <= last:
        free = PORT_BITS if first == 0 else (first & -first).bit_length() - 1
        while first + (1 << free) - 1 > last:
            free -= 1
        found.append((first, PORT_BITS - free))
        first += 1 << free
    return tuple(found)
