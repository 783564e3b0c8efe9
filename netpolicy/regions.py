"""ipBlocks as regions: every address belongs to at most one region, and each block is a set of regions.

The prefixes of all blocks and excepts divide the address space. A region is a prefix without the more specific prefixes
in it, so the region of an address is its longest matching prefix: one lookup in an LPM table. A region is identified by
the addresses that it covers (prefix and holes), not only by its prefix: the same region always means the same
addresses, even if other blocks are added or removed. So a change of blocks is safe for packets in this order: first
allow the new regions, then switch prefixes from the most to the least specific, then remove the old regions.

IPv4 is stored inside IPv6 as ::ffff:0:0/96, as in the kernel's maps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from netpolicy.types import (
    Direction,
    IPAddress,
    IPBlock,
    IPNetwork,
    LabelSet,
    Policy,
    PolicyRef,
    PortRule,
    Rule,
)

_V4_BITS = 0xFFFF << 32


class Prefix(NamedTuple):
    """A prefix of 128 bits: `bits` is the address with all further bits zero."""

    bits: int
    length: int

    @classmethod
    def of(cls, network: IPNetwork) -> Prefix:
        value = int(network.network_address)
        if network.version == 4:
            return cls(_V4_BITS | value, 96 + network.prefixlen)
        return cls(value, network.prefixlen)

    @classmethod
    def host(cls, address: IPAddress) -> Prefix:
        return cls(_V4_BITS | int(address) if address.version == 4 else int(address), 128)

    def covers(self, other: Prefix) -> bool:
        """True if this prefix contains all addresses of `other`."""
        return other.length >= self.length and (other.bits ^ self.bits) >> (128 - self.length) == 0

    @property
    def last(self) -> int:
        return self.bits | ((1 << (128 - self.length)) - 1)

    @property
    def is_v4(self) -> bool:
        return _V4_ALL.covers(self)

    @property
    def network(self) -> IPNetwork:
        if self.is_v4:
            return IPv4Network((self.bits & 0xFFFFFFFF, self.length - 96))
        return IPv6Network((self.bits, self.length))

    def __str__(self) -> str:
        return str(self.network)


_V4_ALL = Prefix(_V4_BITS, 96)


class Region(NamedTuple):
    """The addresses of `prefix` that are in none of `holes`, the largest prefixes in use inside it."""

    prefix: Prefix
    holes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class Regions:
    """The result of `partition`, sorted by prefix. The caller numbers the regions (see `numbered`)."""

    regions: tuple[Region, ...] = ()
    # Label sets with the named ports of the pod at a /32 or /128, for egress rules that combine an ipBlock with a named
    # port.
    pods: Mapping[Prefix, LabelSet] = field(default_factory=dict)
    numbers: Mapping[Region, int] = field(default_factory=dict)

    def numbered(self, numbers: Mapping[Region, int]) -> Regions:
        return Regions(self.regions, self.pods, numbers)

    def inside(self, block: IPBlock) -> list[Region]:
        """The regions of a block. Its prefixes must have been part of the partition."""
        cidr = Prefix.of(block.cidr)
        holes = [Prefix.of(network) for network in block.excepts]
        start = bisect_left(self.regions, cidr, key=lambda region: region.prefix)
        found: list[Region] = []
        for place in range(start, len(self.regions)):
            region = self.regions[place]
            # Regions are sorted, so all further ones begin after the block.
            if region.prefix.bits > cidr.last:
                break
            # ::/0 covers the bits of the IPv4 range, but an IPv6 block means only IPv6.
            if not cidr.covers(region.prefix) or region.prefix.is_v4 != cidr.is_v4:
                continue
            if not any(hole.covers(region.prefix) for hole in holes):
                found.append(region)
        return found


def partition(prefixes: Iterable[Prefix]) -> tuple[Region, ...]:
    """Divide the address space by these prefixes. The result is sorted and depends only on the set of prefixes.

    An IPv6 prefix that contains the IPv4-mapped range (::/0) gets 0.0.0.0/0 as a hole: it covers only IPv6.
    """
    unique = set(prefixes)
    if any(prefix.length < 96 and prefix.covers(_V4_ALL) for prefix in unique):
        unique.add(_V4_ALL)
    ordered = sorted(unique)
    holes: dict[Prefix, list[Prefix]] = {prefix: [] for prefix in ordered}
    around: list[Prefix] = []
    for prefix in ordered:
        while around and not around[-1].covers(prefix):
            around.pop()
        if around:
            holes[around[-1]].append(prefix)
        around.append(prefix)
    return tuple(Region(prefix, tuple(holes[prefix])) for prefix in ordered)


class Blocks:
    """The prefixes of all policies' blocks, while policies are added and removed."""

    def __init__(self) -> None:
        self._cuts: Counter[Prefix] = Counter()
        self._named: dict[PolicyRef, list[tuple[IPBlock, PortRule]]] = {}

    @property
    def cuts(self) -> Set[Prefix]:
        return self._cuts.keys()

    @property
    def names_ports(self) -> bool:
        """True if an egress rule combines an ipBlock with a named port: then `hosts` is needed."""
        return bool(self._named)

    def change(self, old: Policy | None, new: Policy | None) -> bool:
        """Replace, add or remove one policy. Returns True if the prefixes or the named ports may have changed."""
        if old is not None:
            self._cuts.subtract(_cuts_of(old))
            for prefix in _cuts_of(old):
                if not self._cuts[prefix]:
                    del self._cuts[prefix]
        if new is not None:
            self._cuts.update(_cuts_of(new))
        before = self._named.pop(old.ref, []) if old is not None else []
        after = _named_of(new) if new is not None else []
        if new is not None and after:
            self._named[new.ref] = after
        return (_cuts_of(old) if old else []) != (_cuts_of(new) if new else []) or before != after

    def hosts(self, pods: Iterable[tuple[IPAddress, LabelSet]]) -> dict[Prefix, LabelSet]:
        """The pods whose address must be a separate region: if an egress rule combines an ipBlock with a named port,
        the name may mean another number for each destination pod."""
        named = [pair for pairs in self._named.values() for pair in pairs]
        return {
            Prefix.host(address): pod
            for address, pod in pods
            if any(address in block and pod.ports_named(str(port.port), port.protocol) for block, port in named)
        }


def _rules_of(policy: Policy) -> Iterator[tuple[Direction, Rule]]:
    return ((direction, rule) for direction in policy.directions for rule in policy.rules(direction))


def _cuts_of(policy: Policy) -> list[Prefix]:
    blocks = (peer.block for _, rule in _rules_of(policy) for peer in rule.peers if peer.block is not None)
    return [Prefix.of(network) for block in blocks for network in (block.cidr, *block.excepts)]


def _named_of(policy: Policy) -> list[tuple[IPBlock, PortRule]]:
    return [
        (peer.block, port)
        for direction, rule in _rules_of(policy)
        if direction is Direction.EGRESS
        for peer in rule.peers
        if peer.block is not None
        for port in rule.ports
        if isinstance(port.port, str)
    ]
