"""Reads single values of API objects. An invalid value is None, and is added to `unread` with its path."""

from __future__ import annotations

from datetime import UTC, datetime

from netpolicy.addresses import parse_address, parse_network
from nodenet.decode.salvage import Unread
from nodenet.interned import interned, shared
from nodenet.model import IPAddress, IPNetwork, Protocol

Unreads = list[Unread]


def labels(found: dict[str, str] | None) -> dict[str, str]:
    """Labels whose texts are shared with equal ones of other objects: 150,000 pods have few different ones."""
    return {shared(key): shared(value) for key, value in found.items()} if found else {}


@interned
def _parse_ip(text: str) -> IPAddress:
    return parse_address(text)


def address(path: str, text: str, unread: Unreads) -> IPAddress | None:
    try:
        return _parse_ip(text)
    except ValueError:
        unread.append(Unread(path, f"expected an IP address, got {text!r}"))
        return None


def network(path: str, text: str, unread: Unreads) -> IPNetwork | None:
    try:
        return parse_network(text)
    except ValueError:
        unread.append(Unread(path, f"expected a network in CIDR form, got {text!r}"))
        return None


def protocol(path: str, text: str | None, unread: Unreads) -> Protocol | None:
    name = text or "TCP"
    if name in ("TCP", "UDP", "SCTP"):
        return Protocol[name]
    unread.append(Unread(path, f"expected TCP, UDP or SCTP, got {name!r}"))
    return None


def port(path: str, number: int, unread: Unreads) -> int | None:
    if 1 <= number <= 65535:
        return number
    unread.append(Unread(path, f"expected 1-65535, got {number}"))
    return None


def timestamp(path: str, text: str, unread: Unreads) -> float | None:
    """An RFC 3339 time, in seconds since the epoch. Without a time zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        unread.append(Unread(path, f"expected an RFC 3339 time, got {text[:64]!r}"))
        return None
