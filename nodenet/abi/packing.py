"""Encodes addresses, MACs and ports, and defines the records that hold one number."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, Protocol, Self

from netpolicy.addresses import KeyIPv4, KeyIPv6
from nodenet.interned import interned
from nodenet.model import IPAddress

_V4_PREFIX = bytes(10) + b"\xff\xff"


class Record(Protocol):
    """One struct of abi.h."""

    def pack(self) -> bytes:
        """The struct's bytes, as the kernel's map holds them."""
        ...

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of `pack`. Raises struct.error if the size is wrong."""
        ...


def pack_addr(address: IPAddress) -> bytes:
    """16 bytes; IPv4 as an IPv4-mapped IPv6 address."""
    return _V4_PREFIX + address.packed if address.version == 4 else address.packed


@interned
def unpack_addr(data: bytes) -> IPAddress:
    return KeyIPv4(data[12:]) if data.startswith(_V4_PREFIX) else KeyIPv6(data)


def pack_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# Strings do not support weak references, so this cache has a small limit instead, enough for one node.
@lru_cache(maxsize=1 << 10)
def unpack_mac(data: bytes) -> str:
    return data.hex(":")


def swap_port(port: int) -> int:
    """Convert between network byte order and little-endian: the struct formats here are native, ports are
    big-endian."""
    return ((port & 0xFF) << 8) | (port >> 8)


class U32(NamedTuple):
    """One __u32: an identity, a region, nn_sock_revnat_entry; keys of backend and revnat."""

    value: int

    def pack(self) -> bytes:
        return struct.pack("=I", self.value)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=I", data))
