"""Records of Services and their backends."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.numbers import V4_PREFIX_BITS
from nodenet.abi.packing import pack_addr, swap_port, unpack_addr
from nodenet.model import IPAddress, IPNetwork

# Bits of a Service's number.
_NUMBER_BITS = 32


class FrontendKey(NamedTuple):
    """nn_frontend_key. Slot 0 is the master entry."""

    addr: IPAddress
    port: int
    protocol: int
    slot: int
    scope: int = 0

    def pack(self) -> bytes:
        addr, port = pack_addr(self.addr), swap_port(self.port)
        return struct.pack("=16sHBBH2x", addr, port, self.protocol, self.scope, self.slot)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        addr, port, protocol, scope, slot = struct.unpack("=16sHBBH2x", data)
        return cls(unpack_addr(addr), swap_port(port), protocol, slot, scope)


class FrontendEntry(NamedTuple):
    """nn_frontend_entry. Master entry: number of backends, flags and session affinity. Slot: backend_id. Both contain
    the Service's number."""

    backend_id: int
    service_id: int
    backends: int
    flags: int = 0
    affinity_id: int = 0
    affinity_seconds: int = 0

    def pack(self) -> bytes:
        return struct.pack("=IIHHII", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=IIHHII", data))


class AffinityKey(NamedTuple):
    """nn_affinity_key"""

    client: IPAddress
    affinity_id: int

    def pack(self) -> bytes:
        return struct.pack("=16sI", pack_addr(self.client), self.affinity_id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        client, number = struct.unpack("=16sI", data)
        return cls(unpack_addr(client), number)


class AffinityEntry(NamedTuple):
    """nn_affinity_entry"""

    backend_id: int
    last_used: int

    def pack(self) -> bytes:
        return struct.pack("=II", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=II", data))


class ClientKey(NamedTuple):
    """The key of nn_client: the cookie of a network namespace."""

    cookie: int

    def pack(self) -> bytes:
        return struct.pack("=Q", self.cookie)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=Q", data))


class ClientEntry(NamedTuple):
    """nn_client_entry. An address that the pod does not have is `::`."""

    v4: IPAddress
    v6: IPAddress

    def pack(self) -> bytes:
        return pack_addr(self.v4) + pack_addr(self.v6)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(unpack_addr(data[:16]), unpack_addr(data[16:]))


# NN_MEMBER_AFFINITY and NN_MEMBER_EXTERNAL
MEMBER_AFFINITY = 1 << 31
MEMBER_EXTERNAL = 1 << 31


class MemberKey(NamedTuple):
    """nn_member_key. `service_id` plus MEMBER_AFFINITY: a backend that takes new flows, of a Service with affinity.
    `backend_id` plus MEMBER_EXTERNAL: the same for traffic that the EXTERNAL entry serves."""

    service_id: int
    backend_id: int

    def pack(self) -> bytes:
        return struct.pack("=II", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=II", data))


class SourceRangeKey(NamedTuple):
    """nn_source_range_key: a range of the frontend with this number."""

    prefixlen: int
    service_id: int
    addr: IPAddress

    @classmethod
    def of(cls, service_id: int, network: IPNetwork) -> Self:
        bits = _NUMBER_BITS + (V4_PREFIX_BITS if network.version == 4 else 0)
        return cls(bits + network.prefixlen, service_id, network.network_address)

    def pack(self) -> bytes:
        return struct.pack("=II16s", self.prefixlen, self.service_id, pack_addr(self.addr))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, service_id, addr = struct.unpack("=II16s", data)
        return cls(prefixlen, service_id, unpack_addr(addr))


class AddressPort(NamedTuple):
    """nn_backend_entry and nn_revnat_entry."""

    addr: IPAddress
    port: int
    protocol: int

    def pack(self) -> bytes:
        return struct.pack("=16sHBx", pack_addr(self.addr), swap_port(self.port), self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        addr, port, protocol = struct.unpack("=16sHBx", data)
        return cls(unpack_addr(addr), swap_port(port), protocol)
