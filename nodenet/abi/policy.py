"""Records of endpoints, identities and policy."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.numbers import V4_PREFIX_BITS
from nodenet.abi.packing import pack_addr, pack_mac, swap_port, unpack_addr, unpack_mac
from nodenet.model import Direction, IPAddress, IPNetwork


class AddressKey(NamedTuple):
    """nn_endpoint_key"""

    addr: IPAddress

    def pack(self) -> bytes:
        return pack_addr(self.addr)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(unpack_addr(data))


class EndpointEntry(NamedTuple):
    """nn_endpoint_entry. `netns`: 1 + the id (nsid) that the node's namespace has for the pod's; 0: not known."""

    ifindex: int
    identity: int
    endpoint_id: int
    flags: int
    mac: str
    netns: int = 0

    def pack(self) -> bytes:
        mac = pack_mac(self.mac)
        return struct.pack("=IIHBx6sH", self.ifindex, self.identity, self.endpoint_id, self.flags, mac, self.netns)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        ifindex, identity, endpoint_id, flags, mac, netns = struct.unpack("=IIHBx6sH", data)
        return cls(ifindex, identity, endpoint_id, flags, unpack_mac(mac), netns)


class LpmKey(NamedTuple):
    """nn_lpm_key. `prefixlen` counts bits of the 16-byte address."""

    prefixlen: int
    addr: IPAddress

    @classmethod
    def of(cls, network: IPNetwork) -> Self:
        bits = V4_PREFIX_BITS if network.version == 4 else 0
        return cls(bits + network.prefixlen, network.network_address)

    @classmethod
    def host(cls, address: IPAddress) -> Self:
        return cls(128, address)

    def pack(self) -> bytes:
        return struct.pack("=I16s", self.prefixlen, pack_addr(self.addr))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, addr = struct.unpack("=I16s", data)
        return cls(prefixlen, unpack_addr(addr))


class PolicyKey(NamedTuple):
    """nn_policy_key. Fields beyond `prefixlen` bits must be 0."""

    prefixlen: int
    subject: int
    peer: int
    direction: Direction
    protocol: int
    port: int

    def pack(self) -> bytes:
        return struct.pack("=IIIBBH", *self[:5], swap_port(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, subject, peer, direction, protocol, port = struct.unpack("=IIIBBH", data)
        return cls(prefixlen, subject, peer, Direction(direction), protocol, swap_port(port))


class State(NamedTuple):
    """nn_state. An odd revision: user space is in the middle of a policy change."""

    policy_revision: int

    def pack(self) -> bytes:
        return struct.pack("=I4x", self.policy_revision)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=I4x", data))
