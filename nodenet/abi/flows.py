"""Records of the programs' state: connections, translated flows and sockets."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.packing import pack_addr, swap_port, unpack_addr
from nodenet.model import Direction, IPAddress


class CtKey(NamedTuple):
    """nn_ct_key: the flow as one pod sees it."""

    pod: IPAddress
    remote: IPAddress
    pod_port: int
    remote_port: int
    protocol: int

    def pack(self) -> bytes:
        return struct.pack(
            "=16s16sHHB3x",
            pack_addr(self.pod),
            pack_addr(self.remote),
            swap_port(self.pod_port),
            swap_port(self.remote_port),
            self.protocol,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        pod, remote, pod_port, remote_port, protocol = struct.unpack("=16s16sHHB3x", data)
        return cls(unpack_addr(pod), unpack_addr(remote), swap_port(pod_port), swap_port(remote_port), protocol)


class CtEntry(NamedTuple):
    """nn_ct_entry. `revision` is a generation of policy; `last_seen` and `created` are seconds of CLOCK_MONOTONIC."""

    last_seen: int
    revision: int
    rule_id: int
    service_id: int
    direction: Direction
    flags: int
    endpoint_id: int
    created: int

    def pack(self) -> bytes:
        return struct.pack("=IIIIBBHI", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        last_seen, revision, rule_id, service_id, direction, flags, endpoint_id, created = struct.unpack(
            "=IIIIBBHI", data
        )
        return cls(last_seen, revision, rule_id, service_id, Direction(direction), flags, endpoint_id, created)


class NatKey(NamedTuple):
    """nn_nat_key: a packet as it arrives. `reply`: a NatHalf; its lowest bit is 1 for packets of the backend."""

    saddr: IPAddress
    daddr: IPAddress
    sport: int
    dport: int
    protocol: int
    reply: int

    def pack(self) -> bytes:
        saddr, daddr = pack_addr(self.saddr), pack_addr(self.daddr)
        return struct.pack(
            "=16s16sHHBB2x", saddr, daddr, swap_port(self.sport), swap_port(self.dport), self.protocol, self.reply
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        saddr, daddr, sport, dport, protocol, reply = struct.unpack("=16s16sHHBB2x", data)
        return cls(unpack_addr(saddr), unpack_addr(daddr), swap_port(sport), swap_port(dport), protocol, reply)


class NatEntry(NamedTuple):
    """nn_nat_entry: what becomes of the packet. `last_seen`: as in CtEntry."""

    saddr: IPAddress
    daddr: IPAddress
    sport: int
    dport: int
    last_seen: int
    service_id: int
    backend_id: int
    slot: int
    endpoint_id: int
    flags: int

    def pack(self) -> bytes:
        saddr, daddr = pack_addr(self.saddr), pack_addr(self.daddr)
        return struct.pack("=16s16sHHIIIHHB3x", saddr, daddr, swap_port(self.sport), swap_port(self.dport), *self[4:])

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        saddr, daddr, sport, dport, *rest = struct.unpack("=16s16sHHIIIHHB3x", data)
        return cls(unpack_addr(saddr), unpack_addr(daddr), swap_port(sport), swap_port(dport), *rest)

    def other(self, key: NatKey) -> NatKey:
        """The key of the flow's other half."""
        return NatKey(self.daddr, self.saddr, self.dport, self.sport, key.protocol, key.reply ^ 1)


class SockQuestion(NamedTuple):
    """nn_sock_question: the packet that asks the program sock_service about a connected UDP socket."""

    local: IPAddress
    remote: IPAddress
    local_port: int
    remote_port: int

    def pack(self) -> bytes:
        ports = (swap_port(self.local_port), swap_port(self.remote_port))
        return struct.pack("=16x16s16sHH", pack_addr(self.local), pack_addr(self.remote), *ports)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        local, remote, *ports = struct.unpack("=16x16s16sHH", data)
        return cls(unpack_addr(local), unpack_addr(remote), swap_port(ports[0]), swap_port(ports[1]))


class SockRevnatKey(NamedTuple):
    """nn_sock_revnat_key. `cookie` is the kernel's socket cookie; addr and port are the backend's (nn_sock_choice: the
    frontend's)."""

    cookie: int
    addr: IPAddress
    port: int
    protocol: int

    def pack(self) -> bytes:
        return struct.pack("=Q16sHB5x", self.cookie, pack_addr(self.addr), swap_port(self.port), self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        cookie, addr, port, protocol = struct.unpack("=Q16sHB5x", data)
        return cls(cookie, unpack_addr(addr), swap_port(port), protocol)
