"""Parses addresses and CIDRs as an API server does: numbers with leading zeros are decimal, IPv4-mapped addresses are
IPv4.

API servers validate these values with Go's older parser (k8s.io/utils/net: ParseIPSloppy, ParseCIDRSloppy). They store
whatever it accepts, so we must parse that too, with the same meaning.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from netpolicy.types import IPAddress, IPNetwork

_MAPPED = IPv6Network("::ffff:0:0/96")


class KeyIPv4(IPv4Address):
    """An address that is hashed often, as part of keys of large tables: it computes its hash once. `ipaddress` makes a
    text of the address for each hash."""

    __slots__ = ("_hash",)

    def __init__(self, address: object) -> None:
        super().__init__(address)
        self._hash = IPv4Address.__hash__(self)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"IPv4Address({str(self)!r})"


class KeyIPv6(IPv6Address):
    """As KeyIPv4."""

    __slots__ = ("_hash",)

    def __init__(self, address: object) -> None:
        super().__init__(address)
        self._hash = IPv6Address.__hash__(self)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"IPv6Address({str(self)!r})"


def parse_address(text: str) -> IPAddress:
    """An address without a zone. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    written = _without_leading_zeros(text)
    if ":" not in written:
        return KeyIPv4(written)
    found = KeyIPv6(written)
    mapped = found.ipv4_mapped
    return found if mapped is None else KeyIPv4(int(mapped))


def parse_network(text: str) -> IPNetwork:
    """`ADDRESS/LENGTH`; bits after the prefix length are ignored. Raises ValueError.

    A part of ::ffff:0:0/96 is IPv4: Go's IPNet.Contains compares such a network with IPv4 addresses, and our maps do
    too.
    """
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit()) or "%" in address:
        raise ValueError(f"{text!r} is not a CIDR")
    found = ip_network(f"{_without_leading_zeros(address)}/{length.lstrip('0') or '0'}", strict=False)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - 96))
    return found


def _without_leading_zeros(text: str) -> str:
    """010.0.0.1 is 10.0.0.1 (not octal). Python rejects it, and also more than four digits between colons."""
    groups, colon, last = text.rpartition(":")
    dotted = ".".join(map(_number, last.split("."))) if "." in last else _number(last)
    return ":".join(map(_number, groups.split(":"))) + colon + dotted if colon else dotted


def _number(digits: str) -> str:
    return (digits.lstrip("0") or "0") if digits else ""
