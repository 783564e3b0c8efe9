"""Makes cases: frames from A to B that the parser may read differently than the receiving kernel.

Most have two faces: the same datagram with a header that policy allows (the lie), and with one that it denies (the
truth). Fragments take their bytes from either face. Bytes behind the end of an IP packet continue the lie.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from perf.fuzz import build, extensions
from perf.fuzz.fragments import fragments
from perf.fuzz.messages import link, messages
from perf.fuzz.parts import ALLOWED_PORTS, Parts
from perf.fuzz.world import ACK, FIN, NEIGHBOUR, OTHER, REVERSE, ROUTER, RST, SYN, TCP, TRACKS, UDP, Case, Frame

_FLAGS = (SYN, ACK, SYN | ACK, FIN | ACK, RST, SYN | FIN, SYN | RST, 0, 0x18, 0xC2, 0xFF, SYN | 0x08)
_OTHER_PROTOCOLS = (2, 4, 41, 47, 50, 51, 59, 89, 132, 135, 136, 253)
_Kind = Callable[[Parts], Case]


class Maker:
    """An endless source of cases. The same seed gives the same cases."""

    def __init__(self, seed: int) -> None:
        self._parts = Parts(seed)

    def case(self) -> Case:
        return self._parts.rng.choice(_KINDS)(self._parts)


def allowed(parts: Parts) -> Case:
    """A well-formed and allowed packet, complete or in fragments. It must arrive."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    tag = parts.tag()
    protocol, port = rng.choice(ALLOWED_PORTS)
    body = tag + rng.randbytes(rng.choice((0, 5, 100)))
    segment = parts.segment(src, dst, protocol, (rng.randrange(1024, 65536), port), SYN, body)
    following = protocol
    if version == 6 and rng.random() < 0.3:
        following, segment = build.chain([(build.DEST, extensions.padding(rng, 1))], protocol, segment)
    if rng.random() < 0.6:
        packet = parts.packet(version, src, dst, following, segment)
        return Case("allowed", track.name, (parts.frame(track, version, packet),), tag)
    # The first fragment contains an options header and the TCP header. If no bytes remain for a second one, send the
    # complete packet.
    cut = rng.randrange(32, max(len(segment) + 8, 40), 8)
    pieces = [(0, segment[:cut], True), (cut, segment[cut:], False)] if cut < len(segment) else [(0, segment, False)]
    ident = parts.next_ident()
    packets = [_piece(version, src, dst, following, *piece, ident) for piece in pieces]
    return Case("allowed in fragments", track.name, tuple(parts.frame(track, version, p) for p in packets), tag)


def _piece(
    version: int, src: bytes, dst: bytes, following: int, offset: int, data: bytes, more: bool, ident: int
) -> bytes:
    if version == 4:
        field = (offset >> 3 & 0x1FFF) | (build.MORE if more else 0)
        return build.ipv4(src, dst, following, data, ident=ident, fragment=field)
    header = bytes((following,)) + build.fragment_header(offset, more, ident)
    return build.ipv6(src, dst, build.FRAGMENT, header + data)


def denied(parts: Parts) -> Case:
    """A normal packet that policy denies: by its ports, by flags against the direction of a flow, or by its
    protocol."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    faces = parts.faces(src, dst)
    choice = rng.random()
    if choice < 0.6:
        packet = parts.packet(version, src, dst, faces.truth_protocol, faces.truth)
    elif choice < 0.8:
        segment = parts.segment(src, dst, TCP, REVERSE[TCP], rng.choice(_FLAGS), b"")
        packet = parts.packet(version, src, dst, TCP, segment)
    else:
        packet = parts.packet(version, src, dst, rng.choice(_OTHER_PROTOCOLS), faces.lie)
    return Case("denied", track.name, (parts.frame(track, version, packet),))


def foreign(parts: Parts) -> Case:
    """A packet that policy would allow, but from an address that is not A's."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    neighbour, other, router = NEIGHBOUR[version], OTHER[version], ROUTER[version]
    src = rng.choice((neighbour, neighbour, dst, other, router, bytes(len(src)), src[:-1] + b"\x77"))
    protocol, port = rng.choice(ALLOWED_PORTS)
    segment = parts.segment(src, dst, protocol, (rng.randrange(1024, 65536), port), SYN, b"")
    return Case(
        "foreign", track.name, (parts.frame(track, version, parts.packet(version, src, dst, protocol, segment)),)
    )


def lengths(parts: Parts) -> Case:
    """One packet with a false IP length or IPv4 header length, and with bytes behind its end."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    faces = parts.faces(src, dst)
    face, protocol = rng.choice(((faces.truth, faces.truth_protocol), (faces.lie, faces.lie_protocol)))
    trailer = rng.choice((b"", faces.lie, faces.truth, rng.randbytes(40)))
    gso_size = rng.choice((0, 0, 0, 500))
    headers = extensions.some(rng) if version == 6 and rng.random() < 0.5 else []
    following, payload = build.chain(headers, protocol, face)
    size = rng.choice((0, 1, 4, 8, 14, 20, len(face) - 1, len(payload), len(payload) + len(trailer), 0xFFFF))
    if version == 6:
        return Case(
            "lengths",
            track.name,
            (parts.frame(track, 6, build.ipv6(src, dst, following, payload + trailer, length=max(size, 0)), gso_size),),
        )
    options = extensions.ipv4_options(rng, faces.lie) if rng.random() < 0.5 else b""
    ihl = rng.choice((None, None, 5, 5 + len(options) // 4, rng.randrange(16)))
    total = rng.choice((None, None, 0, 20 + size, 20 + len(options) + size, size))
    packet = build.ipv4(src, dst, protocol, payload + trailer, options=options, ihl=ihl, total=total)
    return Case("lengths", track.name, (parts.frame(track, 4, packet, gso_size),))


def chains(parts: Parts) -> Case:
    """Any number and order of IPv6 extension headers, sometimes truncated, before one or both faces."""
    rng = parts.rng
    track = rng.choice(TRACKS)
    src, dst = track.a[6], track.b[6]
    faces = parts.faces(src, dst)
    headers = extensions.some(rng, most=9)
    following, payload = build.chain(headers, faces.truth_protocol, faces.truth)
    if rng.random() < 0.3:
        # A false header length, which leads into the other face.
        payload = extensions.bent(rng, payload) + faces.lie
    length = None if rng.random() < 0.7 else rng.randrange(len(payload) + 1)
    return Case("chains", track.name, (parts.frame(track, 6, build.ipv6(src, dst, following, payload, length=length)),))


def mutated(parts: Parts) -> Case:
    """Another case with a few changed bytes, mostly in its headers."""
    rng = parts.rng
    case = rng.choice(_BASE)(parts)
    frames = []
    for frame in case.frames:
        data = bytearray(frame.data)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            at = rng.randrange(12, min(len(data), 120))
            data[at] = rng.choice((data[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255))
        if data[12:14] == build.IPV4_TYPE and rng.random() < 0.8:
            data[24:26] = b"\0\0"
            words = max(data[14] & 15, 5)
            data[24:26] = struct.pack("!H", build.checksum(bytes(data[14 : 14 + words * 4])))
        if rng.random() < 0.1:
            del data[rng.randrange(14, len(data)) :]
        frames.append(Frame(bytes(data), frame.gso_size))
    return Case(f"mutated {case.kind}", case.track, tuple(frames))


def noise(parts: Parts) -> Case:
    """Random bytes behind an IP header with B's address."""
    rng = parts.rng
    track, version, src, dst = parts.ends()
    data = rng.randbytes(rng.choice((0, 8, 20, 60, 400)))
    if version == 4:
        packet = build.ipv4(
            src,
            dst,
            rng.choice((TCP, UDP, rng.randrange(256))),
            data,
            fragment=rng.choice((0, rng.randrange(1 << 16))),
        )
    else:
        packet = build.ipv6(src, dst, rng.choice((TCP, UDP, 44, 0, 60, rng.randrange(256))), data)
    return Case("noise", track.name, (parts.frame(track, version, packet),))


_BASE: tuple[_Kind, ...] = (
    *(allowed, allowed, denied, denied, denied, foreign, lengths, lengths),
    *(chains, fragments, fragments, fragments, fragments, messages, link),
)
_KINDS: tuple[_Kind, ...] = (*_BASE, mutated, mutated, mutated, noise)
