"""Addresses and CIDRs as text, read as an API server reads them: leading zeros are decimal, IPv4-mapped means IPv4.

API servers check these values with Go's older parser (k8s.io/utils/net: ParseIPSloppy, ParseCIDRSloppy). What it
accepts is stored and reaches us, so it must be read, and with the same meaning.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from netpolicy.types import IPAddress, IPNetwork

_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> IPAddress:
    """An address without a zone. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    found = ip_address(_without_leading_zeros(text))
    mapped = found.ipv4_mapped if found.version == 6 else None
    return found if mapped is None else mapped


def parse_network(text: str) -> IPNetwork:
    """`ADDRESS/LENGTH`; bits beyond the length are ignored. Raises ValueError.

    Part of ::ffff:0:0/96 is IPv4: Go's IPNet.Contains compares such a network with IPv4 addresses, and so do the maps.
    """
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit()) or "%" in address:
        raise ValueError(f"{text!r} is no CIDR")
    found = ip_network(f"{_without_leading_zeros(address)}/{length.lstrip('0') or '0'}", strict=False)
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        return IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - 96))
    return found


def _without_leading_zeros(text: str) -> str:
    """010.0.0.1 is 10.0.0.1 (not octal); Python refuses it, as it refuses more than four digits between colons."""
    groups, colon, last = text.rpartition(":")
    dotted = ".".join(map(_number, last.split("."))) if "." in last else _number(last)
    return ":".join(map(_number, groups.split(":"))) + colon + dotted if colon else dotted


def _number(digits: str) -> str:
    return (digits.lstrip("0") or "0") if digits else ""
