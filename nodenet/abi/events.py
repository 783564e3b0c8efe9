"""Records that the programs report: counters and events."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from nodenet.abi.numbers import ENTRY_ENDS, EntryEnd, FairTable
from nodenet.abi.packing import pack_addr, pack_mac, swap_port, unpack_addr, unpack_mac
from nodenet.model import IPAddress


class MetricsKey(NamedTuple):
    """nn_metrics_key. `reason`: 0 is forwarded, LOST_EVENTS counts events lost for lack of space, all others are a
    DropReason. Direction 0: see `ended`."""

    reason: int
    direction: int

    @classmethod
    def ended(cls, table: FairTable, end: EntryEnd) -> Self:
        """Counts entries of a table with slots; their number is in MetricsEntry.packets."""
        return cls(table * ENTRY_ENDS + end, 0)

    def pack(self) -> bytes:
        return struct.pack("=BB2x", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=BB2x", data))


class MetricsEntry(NamedTuple):
    """nn_metrics_entry, of one CPU."""

    packets: int
    octets: int

    def pack(self) -> bytes:
        return struct.pack("=QQ", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=QQ", data))


class Event(NamedTuple):
    """nn_event: one packet or socket call, as one program saw it. `time` is ns of CLOCK_MONOTONIC."""

    type: int
    point: int
    size: int
    reason: int
    time: int
    cookie: int
    saddr: IPAddress
    daddr: IPAddress
    sport: int
    dport: int
    protocol: int
    direction: int
    ct_status: int
    tcp_flags: int
    icmp_type: int
    icmp_code: int
    endpoint_id: int
    src_identity: int
    dst_identity: int
    rule_id: int
    service_id: int
    ifindex: int
    length: int
    src_mac: str
    dst_mac: str
    ip_version: int
    is_reply: int

    def pack(self) -> bytes:
        values: list[object] = list(self)
        values[6], values[7] = pack_addr(self.saddr), pack_addr(self.daddr)
        values[8], values[9] = swap_port(self.sport), swap_port(self.dport)
        values[23], values[24] = pack_mac(self.src_mac), pack_mac(self.dst_mac)
        return _EVENT.pack(*values)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode one record; additional bytes (from a newer datapath) are ignored."""
        values = [*_EVENT.unpack_from(data)]
        values[6], values[7] = unpack_addr(values[6]), unpack_addr(values[7])
        values[8], values[9] = _PORTS.unpack_from(data, _PORTS_OFFSET)
        values[23], values[24] = unpack_mac(values[23]), unpack_mac(values[24])
        return cls._make(values)


_EVENT = struct.Struct("=BBHiQQ16s16sHHBBBBBBHIIIIII6s6sBB6x")
EVENT_SIZE = _EVENT.size
# sport and dport, in network byte order.
_PORTS, _PORTS_OFFSET = struct.Struct(">HH"), 56
