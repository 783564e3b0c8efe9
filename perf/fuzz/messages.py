"""Makes ICMP messages: errors that quote flows, echoes, and the messages of neighbour discovery and multicast."""

from __future__ import annotations

import struct

from perf.fuzz import build
from perf.fuzz.parts import Parts
from perf.fuzz.world import (
    ACK,
    DENIED_PORTS,
    FOREIGN,
    ICMP,
    ICMPV6,
    OTHER,
    REVERSE,
    ROUTER,
    TCP,
    TRACKS,
    UDP,
    Case,
    Track,
)

# Neighbour discovery (RFC 4861): bytes between the first 8 and the options.
_DISCOVERY = {133: 0, 134: 8, 135: 16, 136: 16, 137: 32}


def messages(parts: Parts) -> Case:
    """ICMP echoes, and errors that quote existing or invented flows, completely or truncated."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    protocol = ICMP if version == 4 else ICMPV6
    trailer = b""
    if rng.random() < 0.3:
        kind = rng.choice((8, 0, 13, 5) if version == 4 else (128, 129, 137, 139))
        body = build.icmp(kind, 0, struct.pack("!HH", rng.randrange(4), 1), rng.randbytes(16))
    else:
        kind = rng.choice((3, 11, 12, 4) if version == 4 else (1, 2, 3, 4, 100))
        quote = _quote(parts, track, version)
        size = rng.choice((20, 28, 40, 48, 60, 200))
        body = build.icmp(kind, rng.randrange(5), struct.pack("!HH", 0, 576), quote[:size])
        trailer = quote[size:] if rng.random() < 0.3 else b""
    if track.name == "ingress" and rng.random() < 0.1:
        src = ROUTER[version]
    if version == 6:
        body = build.finished(src, dst, ICMPV6, body)
    packet = parts.packet(version, src, dst, protocol, body)
    return Case("messages", track.name, (parts.frame(track, version, packet + trailer),))


def _quote(parts: Parts, track: Track, version: int) -> bytes:
    rng = parts.rng
    other, own = rng.choice((track.a, track.a, track.a, OTHER))[version], track.b[version]
    protocol = rng.choice((TCP, UDP))
    far, near = rng.choice((REVERSE[protocol], FOREIGN[protocol], (5555, rng.choice(DENIED_PORTS[protocol]))))
    src, dst, ports = rng.choice(((own, other, (near, far)), (own, other, (near, far)), (other, own, (far, near))))
    return parts.packet(version, src, dst, protocol, parts.segment(src, dst, protocol, ports, ACK, b""))


def link(parts: Parts) -> Case:
    """Neighbour discovery and multicast membership, valid and with forbidden content."""
    rng = parts.rng
    track = rng.choice(TRACKS)
    mac = track.a_mac
    link_local = bytes.fromhex("fe80000000000000") + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    src, dst = rng.choice((track.a[6], track.a[6], link_local)), track.b[6]
    target = rng.choice((track.a[6], track.b[6], OTHER[6]))
    kind = rng.choice((130, 131, *_DISCOVERY, *_DISCOVERY, 143))
    fixed = (target + target)[: _DISCOVERY.get(kind, 16)]
    options = rng.choice((b"", b"", b"\1\1" + mac, b"\2\1" + mac, b"\3\4" + bytes(30), rng.randbytes(64)))
    body = build.icmp(kind, 0, bytes(4), fixed + options)
    packet = build.ipv6(src, dst, ICMPV6, build.finished(src, dst, ICMPV6, body), hops=rng.choice((255, 255, 1, 64)))
    return Case("link control", track.name, (parts.frame(track, 6, packet),))
