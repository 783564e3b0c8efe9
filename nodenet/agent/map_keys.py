"""Reads the key of a map's entry from words: `addr=10.96.0.1 port=80 protocol=TCP`, or `10.96.0.1` if the first member
is enough."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from ipaddress import ip_address
from typing import Any

from nodenet import abi
from nodenet.errors import BadInputError
from nodenet.model import Direction, Protocol

_ENUMS: dict[str, type[IntEnum]] = {"protocol": Protocol, "direction": Direction, "scope": abi.FrontendScope}
# Members whose other numbers no key has. A protocol may be any number.
_CLOSED = (abi.RuleDirection, abi.FrontendScope)
_ADDRESSES = ("addr", "pod", "remote", "saddr", "daddr", "client")
_BITS = 128
# Bits of members that are not 32 wide.
_SIZES = {
    **dict.fromkeys(("port", "pod_port", "remote_port", "sport", "dport", "slot"), 16),
    **dict.fromkeys(("protocol", "direction", "scope", "reply", "reason"), 8),
    "cookie": 64,
}
# All bits of nn_policy_key: a lookup finds the entry with the longest prefix.
_POLICY_BITS = abi.POLICY_BITS_PROTOCOL + 16


def parse_key(kind: type[Any], words: Sequence[str]) -> Any:
    """The record of a key. Members that are not given are 0; `prefixlen` is then the largest one. Raises
    BadInputError."""
    names = kind._fields
    given: dict[str, Any] = {}
    for index, word in enumerate(words):
        name, equals, text = word.partition("=")
        if not equals:
            if index:
                raise BadInputError(f"KEY: expected NAME=VALUE, got {word!r}", _members(kind))
            name, text = _first(kind), word
        if name not in names:
            raise BadInputError(f"KEY: this map's key has no {name!r}", _members(kind))
        given[name] = _value(kind, name, text)
    missing = [name for name in names if name in _ADDRESSES and name not in given]
    if missing:
        raise BadInputError(f"KEY: {missing[0]}: required", _members(kind))
    return _with_prefix(kind(**{name: given.get(name, 0) for name in names}), "prefixlen" in given)


def _first(kind: type[Any]) -> str:
    names: tuple[str, ...] = kind._fields
    return next(name for name in names if name != "prefixlen")


def _members(kind: type[Any]) -> str:
    return f"its members: {', '.join(kind._fields)}"


def _enum(kind: type[Any], name: str) -> type[IntEnum] | None:
    if name == "direction" and kind is abi.PolicyKey:
        return abi.RuleDirection
    return _ENUMS.get(name)


def _value(kind: type[Any], name: str, text: str) -> Any:
    if name in _ADDRESSES:
        try:
            return ip_address(text)
        except ValueError:
            raise BadInputError(f"KEY: {name}: expected an IP address, got {text!r}") from None
    enum = _enum(kind, name)
    members = enum.__members__ if enum is not None else {}
    if text.upper() in members:
        return members[text.upper()]
    known = ", ".join(f"{member} ({value})" if enum in _CLOSED else member for member, value in members.items())
    try:
        number = int(text, 0)
    except ValueError:
        expected = f" or one of {known}" if known else ""
        raise BadInputError(f"KEY: {name}: expected a number{expected}, got {text!r}") from None
    if enum in _CLOSED and number not in members.values():
        raise BadInputError(f"KEY: {name}: expected one of {known}, got {number}")
    return _within(name, number, (1 << _SIZES.get(name, 32)) - 1)


def _within(name: str, number: int, most: int) -> int:
    if not 0 <= number <= most:
        raise BadInputError(f"KEY: {name}: expected 0 to {most}, got {number}")
    return number


def _with_prefix(key: Any, given: bool) -> Any:
    """A prefix length counts bits of the 16-byte address; people count those of the address that they write."""
    if isinstance(key, abi.LpmKey):
        offset = abi.V4_PREFIX_BITS if key.addr.version == 4 else 0
        bits = _within("prefixlen", key.prefixlen, _BITS - offset) if given else _BITS - offset
        return key._replace(prefixlen=bits + offset)
    if isinstance(key, abi.PolicyKey) and not given:
        return key._replace(prefixlen=_POLICY_BITS)
    return key
