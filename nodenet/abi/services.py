"""Records of Services and their backends."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.packing import pack_addr, swap_port, unpack_addr
from nodenet.model import IPAddress


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
    """nn_frontend_entry. Master entry: number of backends and flags. Slot: backend_id. Both contain the Service's
    number."""

    backend_id: int
    service_id: int
    backends: int
    flags: int = 0

    def pack(self) -> bytes:
        return struct.pack("=IIHH", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=IIHH", data))


class MemberKey(NamedTuple):
    """nn_member_key"""

    service_id: int
    backend_id: int

    def pack(self) -> bytes:
        return struct.pack("=II", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=II", data))


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
