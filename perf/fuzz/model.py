"""Decides whether policy allows a packet that a kernel delivered. Pure. It is independent of the programs' parser: it
starts from the transport header that the kernel found, after reassembly and behind all IP headers."""

from __future__ import annotations

import struct

from perf.fuzz.receiver import Delivery
from perf.fuzz.world import (
    ACK,
    ALLOWED,
    BY_NAME,
    BY_SOURCE,
    FOREIGN,
    ICMP,
    ICMPV6,
    OTHER,
    REVERSE,
    SYN,
    TCP,
    UDP,
    Track,
)

# RFC 4443: every type below 128 is an error.
_ERRORS = {ICMP: frozenset((3, 4, 11, 12)), ICMPV6: frozenset(range(128))}
# Neighbour discovery and multicast membership, to which policies do not apply (RFC 4861, 2710, 3810).
_LINK_CONTROL = frozenset({131, 132, 133, 135, 136, 143})
# For messages that hosts send: the number of bytes before the options, and the allowed starts of options (the type, and
# a length of 8 bytes).
_DISCOVERY = {133: 8, 135: 24, 136: 24}
_HOST_OPTIONS = frozenset((b"\x01\x01", b"\x02\x01", b"\x0e\x01"))
_EXTENSIONS = (0, 43, 60)
_ICMP_HEADER = 8


def trespass(delivery: Delivery) -> str:
    """Why policy denies this delivery; "" if it is allowed."""
    track = BY_SOURCE.get(delivery.source)
    if delivery.protocol == ICMPV6 and delivery.version == 6 and _is_link_control(delivery, track):
        return ""
    if track is None:
        if _is_routers(delivery):
            return ""
        return "a source address that is not A's"
    if delivery.protocol in (TCP, UDP):
        return _ports(delivery)
    if delivery.protocol == (ICMP if delivery.version == 4 else ICMPV6):
        return _message(delivery, track)
    return f"protocol {delivery.protocol}"


def reached(delivery: Delivery) -> str:
    """A short description of the delivered packet."""
    if delivery.protocol in (TCP, UDP) and len(delivery.data) >= 4:
        sport, dport = struct.unpack("!HH", delivery.data[:4])
        flags = f" flags {delivery.data[13]:#04x}" if delivery.protocol == TCP and len(delivery.data) > 13 else ""
        return f"IPv{delivery.version} {'TCP' if delivery.protocol == TCP else 'UDP'} {sport} -> {dport}{flags}"
    return f"IPv{delivery.version} protocol {delivery.protocol}, {len(delivery.data)} bytes: {delivery.data[:8].hex()}"


def _ports(delivery: Delivery) -> str:
    if len(delivery.data) < 4:
        return f"protocol {delivery.protocol} without ports"
    sport, dport = struct.unpack("!HH", delivery.data[:4])
    if (delivery.protocol, dport) in ALLOWED:
        return ""
    if (sport, dport) != REVERSE[delivery.protocol]:
        return f"a denied port ({dport})"
    if delivery.protocol == TCP and len(delivery.data) > 13 and delivery.data[13] & (SYN | ACK) == SYN:
        return f"SYN against the direction of a flow ({sport} -> {dport})"
    return ""


def _is_link_control(delivery: Delivery, track: Track | None) -> bool:
    is_known = track is not None or delivery.source[:2] == b"\xfe\x80" or not any(delivery.source)
    if not is_known or not delivery.data or delivery.data[0] not in _LINK_CONTROL:
        return False
    fixed = _DISCOVERY.get(delivery.data[0])
    if fixed is None or track is None or not track.a_is_local:
        return True
    # A pod may send only options with its MAC and a nonce, of 8 bytes each, and no payload.
    options = delivery.data[fixed:]
    kinds = {options[at : at + 2] for at in range(0, len(options), 8)}
    return len(options) % 8 == 0 and kinds <= _HOST_OPTIONS


def _is_routers(delivery: Delivery) -> bool:
    """True if a router outside the node may have sent this error. That is possible only in the ingress track: in the
    other tracks all packets to pods come from pods."""
    kind = ICMP if delivery.version == 4 else ICMPV6
    if delivery.protocol != kind or len(delivery.data) < _ICMP_HEADER or delivery.data[0] not in _ERRORS[kind]:
        return False
    quoted = _quoted(delivery.version, delivery.data[_ICMP_HEADER:])
    if quoted is None or quoted[0] != BY_NAME["ingress"].b[delivery.version]:
        return False
    _, dst, protocol, sport, dport = quoted
    known = FOREIGN if dst == OTHER[delivery.version] else REVERSE
    return (protocol, sport) in ALLOWED or (protocol in known and (dport, sport) == known[protocol])


def _message(delivery: Delivery, track: Track) -> str:
    """ICMP is allowed only as an error about a flow between A and B."""
    data = delivery.data
    if len(data) < _ICMP_HEADER or data[0] not in _ERRORS[delivery.protocol]:
        return f"ICMP type {data[0] if data else None}"
    quoted = _quoted(delivery.version, data[_ICMP_HEADER:])
    if quoted is None:
        return "an ICMP error that quotes no ports"
    src, dst, protocol, sport, dport = quoted
    if src != track.b[delivery.version] or dst != track.a[delivery.version]:
        return "an ICMP error about a flow of others"
    if (protocol, sport) in ALLOWED or (protocol in REVERSE and (dport, sport) == REVERSE[protocol]):
        return ""
    return f"an ICMP error about a flow that is not there (protocol {protocol}, {sport} -> {dport})"


def _quoted(version: int, data: bytes) -> tuple[bytes, bytes, int, int, int] | None:
    """Addresses, protocol and ports of the packet that an ICMP error quotes."""
    if version == 4:
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        at, protocol, src, dst = (data[0] & 15) * 4, data[9], data[12:16], data[16:20]
    else:
        if len(data) < 40 or data[0] >> 4 != 6:
            return None
        at, protocol, src, dst = 40, data[6], data[8:24], data[24:40]
        while protocol in _EXTENSIONS and len(data) >= at + 2:
            protocol, at = data[at], at + (data[at + 1] + 1) * 8
    if len(data) < at + 4:
        return None
    sport, dport = struct.unpack("!HH", data[at : at + 4])
    return src, dst, protocol, sport, dport
