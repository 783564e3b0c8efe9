"""The structs and numbers of bpf/lib/abi.h, both ways. The only module that handles bytes of map keys and values.

Records are NamedTuples: they hash and compare in C, which matters when tens of thousands are compared at a restart.
Addresses are `ipaddress` objects (IPv4 is stored as ::ffff:a.b.c.d), MACs are text, ports are plain numbers.
tests/bpf/test_abi.py compares every size, offset and enum with the BTF of the built objects.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple, Protocol, Self

from nodenet.model import Direction, IPAddress, IPNetwork

_V4_PREFIX = bytes(10) + b"\xff\xff"


class Record(Protocol):
    """One struct of abi.h."""

    def pack(self) -> bytes:
        """The struct's bytes, as the kernel's map holds them."""
        ...

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of `pack`. Raises struct.error when the size is wrong."""
        ...


@lru_cache(maxsize=1 << 16)
def pack_addr(address: IPAddress) -> bytes:
    """16 bytes; IPv4 mapped into IPv6."""
    return _V4_PREFIX + address.packed if address.version == 4 else address.packed


@lru_cache(maxsize=1 << 16)
def unpack_addr(data: bytes) -> IPAddress:
    return IPv4Address(data[12:]) if data.startswith(_V4_PREFIX) else IPv6Address(data)


def pack_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def unpack_mac(data: bytes) -> str:
    return data.hex(":")


def _swap(port: int) -> int:
    """Between network order and x86/arm order: struct formats here are native, ports are big-endian."""
    return ((port & 0xFF) << 8) | (port >> 8)


class DropReason(IntEnum):
    """Hubble's DropReason numbers; the kernel side returns them negated (enum nn_drop)."""

    INVALID_SOURCE_IP = 132
    POLICY_DENIED = 133
    INVALID_PACKET_DROPPED = 134
    UNSUPPORTED_L3_PROTOCOL = 139
    ERROR_WHILE_CORRECTING_L4_CHECKSUM = 154
    CT_MAP_INSERTION_FAILED = 155
    INVALID_IPV6_EXTENSION_HEADER = 156
    SERVICE_BACKEND_NOT_FOUND = 158
    UNKNOWN_CONNECTION_TRACKING_STATE = 163
    UNSUPPORTED_L2_PROTOCOL = 166
    IS_A_CLUSTERIP = 174
    FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND = 175
    FORBIDDEN_ICMPV6_MESSAGE = 176
    INVALID_TC_BUFFER = 184
    MULTICAST_HANDLED = 201
    DROP_EP_NOT_READY = 203


class EndpointFlag(IntFlag):
    ISOLATED_INGRESS = 1
    ISOLATED_EGRESS = 2
    NO_REDIRECT = 4


class CtFlag(IntFlag):
    SEEN_REPLY = 1
    FIN_FORWARD = 2
    FIN_REPLY = 4
    RST = 8
    TRANSLATED = 16
    PORT = 32
    OUTSIDE = 64
    UNSURE = 128


class CtStatus(IntEnum):
    NEW = 0
    ESTABLISHED = 1
    REPLY = 2
    RELATED = 3


class EventType(IntEnum):
    """Hubble's monitor event types."""

    DROP = 1
    TRACE = 4
    POLICY_VERDICT = 5
    SOCK = 7


class ObservationPoint(IntEnum):
    """Trace sub-types."""

    TO_ENDPOINT = 0
    TO_STACK = 3
    FROM_ENDPOINT = 5


# Metrics key that counts events the ring buffer had no room for.
LOST_EVENTS = 255
# Prefix length of addresses in an LPM key: IPv4 starts after the 96 bits of ::ffff:.
V4_PREFIX_BITS = 96
# nn_policy_key.prefixlen when only subject, peer and direction count; then + protocol; then + port bits (0-16).
POLICY_BITS_DIRECTION = 72
POLICY_BITS_PROTOCOL = 80


class AddressKey(NamedTuple):
    """nn_endpoint_key"""

    addr: IPAddress

    def pack(self) -> bytes:
        return pack_addr(self.addr)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(unpack_addr(data))


class EndpointEntry(NamedTuple):
    """nn_endpoint_entry. `netns`: 1 + the number (nsid) by which the node's namespace knows the pod's; 0: unknown."""

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
    """nn_lpm_key. `prefixlen` counts over 16 bytes."""

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


class U32(NamedTuple):
    """One __u32: nn_ipcache_entry, nn_cidr_entry, nn_policy_entry, nn_sock_revnat_entry; keys of backend and revnat."""

    value: int

    def pack(self) -> bytes:
        return struct.pack("=I", self.value)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=I", data))


class PolicyKey(NamedTuple):
    """nn_policy_key. Fields beyond `prefixlen` bits must be 0."""

    prefixlen: int
    subject: int
    peer: int
    direction: Direction
    protocol: int
    port: int

    def pack(self) -> bytes:
        return struct.pack("=IIIBBH", *self[:5], _swap(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefixlen, subject, peer, direction, protocol, port = struct.unpack("=IIIBBH", data)
        return cls(prefixlen, subject, peer, Direction(direction), protocol, _swap(port))


class FrontendKey(NamedTuple):
    """nn_frontend_key. Slot 0 is the master entry; port 0, protocol 0, slot 0 marks a Service's address."""

    addr: IPAddress
    port: int
    protocol: int
    slot: int

    def pack(self) -> bytes:
        return struct.pack("=16sHBxH2x", pack_addr(self.addr), _swap(self.port), self.protocol, self.slot)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        addr, port, protocol, slot = struct.unpack("=16sHBxH2x", data)
        return cls(unpack_addr(addr), _swap(port), protocol, slot)


class FrontendEntry(NamedTuple):
    """nn_frontend_entry. Master: number of backends and flags; slot: backend_id. Both carry the Service's number."""

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
        return struct.pack("=16sHBx", pack_addr(self.addr), _swap(self.port), self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        addr, port, protocol = struct.unpack("=16sHBx", data)
        return cls(unpack_addr(addr), _swap(port), protocol)


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
            _swap(self.pod_port),
            _swap(self.remote_port),
            self.protocol,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        pod, remote, pod_port, remote_port, protocol = struct.unpack("=16s16sHHB3x", data)
        return cls(unpack_addr(pod), unpack_addr(remote), _swap(pod_port), _swap(remote_port), protocol)


class CtEntry(NamedTuple):
    """nn_ct_entry. `last_seen` and `created` are seconds of CLOCK_MONOTONIC."""

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


class LbFlowEntry(NamedTuple):
    """nn_lb_flow_entry; its key is a CtKey with the Service's address as the remote end. `last_seen`: as in CtEntry."""

    backend: IPAddress
    port: int
    endpoint_id: int
    backend_id: int
    service_id: int
    last_seen: int
    opening: int
    slot: int
    source_port: int

    def pack(self) -> bytes:
        source_port = _swap(self.source_port)
        return struct.pack("=16sHHIIIBxHH2x", pack_addr(self.backend), _swap(self.port), *self[2:-1], source_port)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        backend, port, *rest = struct.unpack("=16sHHIIIBxHH2x", data)
        found = cls(unpack_addr(backend), _swap(port), *rest)
        return found._replace(source_port=_swap(found.source_port))


class LbPortEntry(NamedTuple):
    """nn_lb_port_entry; its key is a CtKey with the port that replaced the pod's own."""

    service_id: int
    port: int
    endpoint_id: int

    def pack(self) -> bytes:
        return struct.pack("=IHH", self.service_id, _swap(self.port), self.endpoint_id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        service_id, port, endpoint_id = struct.unpack("=IHH", data)
        return cls(service_id, _swap(port), endpoint_id)


class SockRevnatKey(NamedTuple):
    """nn_sock_revnat_key. `cookie` is the kernel's socket cookie; addr and port are the backend's (nn_sock_choice: the
    frontend's)."""

    cookie: int
    addr: IPAddress
    port: int
    protocol: int

    def pack(self) -> bytes:
        return struct.pack("=Q16sHB5x", self.cookie, pack_addr(self.addr), _swap(self.port), self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        cookie, addr, port, protocol = struct.unpack("=Q16sHB5x", data)
        return cls(cookie, unpack_addr(addr), _swap(port), protocol)


class MetricsKey(NamedTuple):
    """nn_metrics_key. `reason` 0 is forwarded, LOST_EVENTS counts events without room, else a DropReason."""

    reason: int
    direction: int

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


class State(NamedTuple):
    """nn_state. An odd revision: user space is in the middle of a policy change."""

    policy_revision: int

    def pack(self) -> bytes:
        return struct.pack("=I4x", self.policy_revision)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*struct.unpack("=I4x", data))


class Event(NamedTuple):
    """nn_event: what one program saw of one packet or socket call. `time` is ns of CLOCK_MONOTONIC."""

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
        values[8], values[9] = _swap(self.sport), _swap(self.dport)
        values[23], values[24] = pack_mac(self.src_mac), pack_mac(self.dst_mac)
        return _EVENT.pack(*values)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode one record; bytes beyond the struct (a newer datapath's) are ignored."""
        values = list[Any](_EVENT.unpack_from(data))
        values[6], values[7] = unpack_addr(values[6]), unpack_addr(values[7])
        values[8], values[9] = _swap(values[8]), _swap(values[9])
        values[23], values[24] = unpack_mac(values[23]), unpack_mac(values[24])
        return cls(*values)


_EVENT = struct.Struct("=BBHiQQ16s16sHHBBBBBBHIIIIII6s6sBB6x")
EVENT_SIZE = _EVENT.size


class MapSpec(NamedTuple):
    """The record types of one BPF map."""

    key: type[Record]
    value: type[Record]


# Every map that user space reads or writes by key; nn_events (ring buffer) and nn_frag (kernel only) are not here.
MAPS: dict[str, MapSpec] = {
    "nn_endpoint": MapSpec(AddressKey, EndpointEntry),
    "nn_ipcache": MapSpec(LpmKey, U32),
    "nn_cidr": MapSpec(LpmKey, U32),
    "nn_policy": MapSpec(PolicyKey, U32),
    "nn_frontend": MapSpec(FrontendKey, FrontendEntry),
    "nn_backend": MapSpec(U32, AddressPort),
    "nn_member": MapSpec(MemberKey, AddressPort),
    "nn_revnat": MapSpec(U32, AddressPort),
    "nn_ct": MapSpec(CtKey, CtEntry),
    "nn_lb_flow": MapSpec(CtKey, LbFlowEntry),
    "nn_lb_port": MapSpec(CtKey, LbPortEntry),
    "nn_sock_revnat": MapSpec(SockRevnatKey, U32),
    "nn_sock_choice": MapSpec(SockRevnatKey, U32),
    "nn_metrics": MapSpec(MetricsKey, MetricsEntry),
    "nn_state": MapSpec(U32, State),
}
