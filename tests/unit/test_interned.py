"""Equal values are one object, and only while it is in use."""

from __future__ import annotations

import gc
from ipaddress import IPv4Address, ip_address

import pytest

from nodenet.abi import pack_addr, unpack_addr
from nodenet.interned import interned


def test_equal_addresses_are_one_object() -> None:
    for text in ("10.1.2.3", "fd00::1"):
        packed = pack_addr(ip_address(text))
        assert unpack_addr(packed) is unpack_addr(bytes(bytearray(packed)))
        assert unpack_addr(packed) == ip_address(text)


def test_what_is_no_longer_used_is_made_again() -> None:
    made: list[str] = []

    @interned
    def address(text: str) -> IPv4Address:
        made.append(text)
        return IPv4Address(text)

    first = address("10.0.0.1")
    assert address("10.0.0.1") is first
    assert made == ["10.0.0.1"]
    del first
    gc.collect()
    address("10.0.0.1")
    assert made == ["10.0.0.1"] * 2


def test_what_cannot_be_made_is_not_remembered() -> None:
    address = interned(IPv4Address)
    for _ in range(2):
        with pytest.raises(ValueError, match="nonsense"):
            address("nonsense")
