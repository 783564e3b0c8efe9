"""Address ranges of host-local: `ranges` is a list of sets, and a pod gets one address from each set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from nodenet.endpoint import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses `start` to `end` of a subnet, both included. The gateway is never assigned to a pod."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    @property
    def size(self) -> int:
        return int(self.end) - int(self.start) + 1

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.start.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class RangeSet:
    """Ranges of one family, from which a pod gets one address."""

    ranges: tuple[Range, ...]

    def find(self, address: IPAddress) -> Range | None:
        """The range that contains the address, or None."""
        return next((found for found in self.ranges if address in found), None)

    @property
    def usable(self) -> int:
        """Number of addresses for pods: without gateways inside the ranges."""
        return sum(found.size - (found.gateway in found) for found in self.ranges)

    def after(self, last: IPAddress | None) -> Iterator[tuple[IPAddress, Range]]:
        """Every address once, starting after `last` and wrapping around, without gateways."""
        first, offset = 0, 0
        if last is not None:
            for index, found in enumerate(self.ranges):
                if last in found:
                    first, offset = index, int(last) - int(found.start) + 1
        order = [*self.ranges[first:], *self.ranges[:first]]
        pieces = [(found, 0, found.size) for found in order]
        if offset:
            # The rest of the first range, then the other ranges, then the start of the first range.
            pieces = [(order[0], offset, order[0].size), *pieces[1:], (order[0], 0, offset)]
        for found, begin, end in pieces:
            for number in range(begin, end):
                address = found.start + number
                if address != found.gateway:
                    yield address, found

    def __str__(self) -> str:
        return ", ".join(str(found) for found in self.ranges)


def range_sets(ipam: dict[str, Any], runtime: Any) -> tuple[RangeSet, ...]:
    """The sets of an ipam section, in the order of the reference plugin: the runtime's ipRanges, then the single
    `subnet`, then `ranges`. Empty if none is configured.

    Raises ValueError that names the key's path. Defaults are those of the reference plugin: the gateway is the first
    address of the subnet, and a range spans the subnet without its network address and (IPv4) broadcast address.
    """
    sources: list[tuple[str, Any]] = []
    single = [[ipam]] if ipam.get("subnet") is not None else None
    for path, value in (("runtimeConfig.ipRanges", runtime), ("ipam", single), ("ipam.ranges", ipam.get("ranges"))):
        if value is None:
            continue
        if not isinstance(value, list):
            raise ValueError(f"{path}: expected a list of lists of ranges")
        sources += [(path if path == "ipam" else f"{path}[{index}]", entry) for index, entry in enumerate(value)]
    sets = tuple(_range_set(path, entry) for path, entry in sources)
    _check_overlaps(sets)
    return sets


def _range_set(path: str, entry: Any) -> RangeSet:
    if not isinstance(entry, list) or not entry:
        raise ValueError(f"{path}: expected a list of at least one range")
    ranges = tuple(_range(path if path == "ipam" else f"{path}[{index}]", item) for index, item in enumerate(entry))
    if len({found.subnet.version for found in ranges}) > 1:
        raise ValueError(f"{path}: IPv4 and IPv6 in one set; use a set for each")
    return RangeSet(ranges)


def _range(path: str, item: Any) -> Range:
    if not isinstance(item, dict):
        raise ValueError(f"{path}: expected an object with subnet")
    text = item.get("subnet")
    try:
        subnet = ip_network(text) if isinstance(text, str) and "/" in text else None
    except ValueError as error:
        raise ValueError(f"{path}.subnet: {error}") from error
    if subnet is None:
        raise ValueError(f"{path}.subnet: expected a network like 10.1.0.0/24, got {text!r}")
    if subnet.max_prefixlen - subnet.prefixlen < 2:
        raise ValueError(f"{path}.subnet: {subnet} is too small: it has no address besides the gateway")
    last = subnet.broadcast_address - 1 if subnet.version == 4 else subnet.broadcast_address
    start = _inside(f"{path}.rangeStart", item.get("rangeStart"), subnet, subnet.network_address + 1)
    end = _inside(f"{path}.rangeEnd", item.get("rangeEnd"), subnet, last)
    if int(start) > int(end):
        raise ValueError(f"{path}.rangeStart: {start} is after rangeEnd {end}")
    gateway = _address(f"{path}.gateway", item.get("gateway"), subnet.network_address + 1)
    if gateway.version != subnet.version:
        raise ValueError(f"{path}.gateway: {gateway} is not of the family of {subnet}")
    return Range(subnet, start, end, gateway)


def _address(path: str, value: Any, default: IPAddress) -> IPAddress:
    if value is None or value == "":
        return default
    try:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not text")
        return ip_address(value)
    except ValueError as error:
        raise ValueError(f"{path}: expected an IP address: {error}") from error


def _inside(path: str, value: Any, subnet: IPNetwork, default: IPAddress) -> IPAddress:
    address = _address(path, value, default)
    if address not in subnet:
        raise ValueError(f"{path}: {address} is not in {subnet}")
    return address


def _check_overlaps(sets: tuple[RangeSet, ...]) -> None:
    seen: list[Range] = []
    for found in (item for entry in sets for item in entry.ranges):
        for other in seen:
            if found.start in other or other.start in found:
                raise ValueError(f"ipam.ranges: {found} and {other} overlap")
        seen.append(found)
