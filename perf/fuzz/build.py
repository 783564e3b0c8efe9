"""Builds headers as bytes: Ethernet, IPv4, IPv6 with extension headers, TCP, UDP, ICMP. Pure, and about a hundred times
faster than scapy, which matters for a million frames."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from perf.fuzz.world import ICMPV6, TCP, UDP

IPV4_TYPE, IPV6_TYPE = b"\x08\x00", b"\x86\xdd"
HOP, ROUTING, FRAGMENT, ESP, AUTH, DEST = 0, 43, 44, 50, 51, 60
MORE = 0x2000
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMPV6: 2}


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    # The ones' complement sum of all 16-bit words equals the whole number modulo 0xffff: one large division.
    total = int.from_bytes(data + b"\0" * (len(data) % 2), "big")
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def ether(dst: bytes, src: bytes, kind: bytes, payload: bytes) -> bytes:
    return dst + src + kind + payload


def arp(mac: bytes, src: bytes, dst: bytes) -> bytes:
    """An ARP request (RFC 826)."""
    return ether(b"\xff" * 6, mac, b"\x08\x06", struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + src + bytes(6) + dst)


def ipv4(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: bytes,
    *,
    ident: int = 0,
    fragment: int = 0,
    options: bytes = b"",
    total: int | None = None,
    ihl: int | None = None,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet. `total` and `ihl` can be false lengths. The header checksum is valid for the length in the
    header."""
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, length & 0xFFFF, ident, fragment, ttl, protocol, 0)
    body = head + src + dst + options + payload
    return body[:10] + struct.pack("!H", checksum(body[: words * 4])) + body[12:]


def ipv6(src: bytes, dst: bytes, following: int, payload: bytes, *, length: int | None = None, hops: int = 64) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28, size & 0xFFFF, following, hops) + src + dst + payload


def chain(headers: Sequence[tuple[int, bytes]], last: int, payload: bytes) -> tuple[int, bytes]:
    """Put extension headers, each (number, bytes without the first one), before a payload. Returns the number of the
    first header, and all bytes."""
    for number, body in reversed(headers):
        payload, last = bytes((last,)) + body + payload, number
    return last, payload


def fragment_header(offset: int, more: bool, ident: int, reserved: int = 0) -> bytes:
    """A fragment header without its first byte. `offset` is in bytes."""
    return struct.pack("!BHI", reserved & 0xFF, (offset & 0xFFF8) | (reserved >> 8 & 6) | more, ident)


def finished(src: bytes, dst: bytes, protocol: int, segment: bytes) -> bytes:
    """The segment with its transport checksum, which includes the pseudo header of the IP version."""
    at = _CHECKSUM_AT[protocol]
    if len(src) == 4:
        pseudo = src + dst + struct.pack("!BBH", 0, protocol, len(segment))
    else:
        pseudo = src + dst + struct.pack("!IHBB", len(segment), 0, 0, protocol)
    value = checksum(pseudo + segment[:at] + b"\0\0" + segment[at + 2 :])
    return segment[:at] + struct.pack("!H", value or (0xFFFF if protocol == UDP else 0)) + segment[at + 2 :]


def tcp(sport: int, dport: int, flags: int, payload: bytes = b"", offset: int = 5) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, dport, 1000, 2000, offset << 4, flags, 64240, 0, 0) + payload


def udp(sport: int, dport: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload


def icmp(kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """An ICMP message. Without a checksum for IPv6, because that includes the pseudo header (see `finished`)."""
    body = struct.pack("!BBH", kind, code, 0) + rest + payload
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]
