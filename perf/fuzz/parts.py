"""The parts of cases: addresses, numbers, transport segments with two faces, frames."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from perf.fuzz import build
from perf.fuzz.world import ACK, ALLOWED, B_MAC, DENIED_PORTS, REVERSE, SYN, TCP, TRACKS, UDP, Frame, Track

# The start of a tag, by which an allowed packet is recognised when it arrives.
TAG = b"NNFZ"
ALLOWED_PORTS = tuple(sorted(ALLOWED))


@dataclass(frozen=True, slots=True)
class Faces:
    """Two variants of one transport segment, of the same length."""

    lie: bytes
    truth: bytes
    lie_protocol: int
    truth_protocol: int


class Parts:
    """Makes random parts from one source of random numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._ident = self.rng.randrange(1 << 16)
        self._tags = 0

    def tag(self) -> bytes:
        """Unique bytes for one case."""
        self._tags += 1
        return TAG + struct.pack("!I", self._tags)

    def ends(self) -> tuple[Track, int, bytes, bytes]:
        track, version = self.rng.choice(TRACKS), self.rng.choice((4, 6))
        return track, version, track.a[version], track.b[version]

    def next_ident(self) -> int:
        """A new identification for the fragments of a case; rarely the previous one again."""
        if self.rng.random() > 0.02:
            self._ident = (self._ident + 1) & 0xFFFF
        return self._ident

    def segment(self, src: bytes, dst: bytes, protocol: int, ports: tuple[int, int], flags: int, body: bytes) -> bytes:
        segment = build.tcp(*ports, flags, body) if protocol == TCP else build.udp(*ports, body)
        return build.finished(src, dst, protocol, segment)

    def faces(self, src: bytes, dst: bytes) -> Faces:
        rng = self.rng
        body = rng.randbytes(rng.choice((0, 8, 13, 24, 60)))
        if rng.random() < 0.3:
            # A flow that B opened. The lie is an answer, the truth is a packet that opens a flow.
            protocol = rng.choice((TCP, TCP, TCP, UDP))
            ports = REVERSE[protocol]
            lie = self.segment(src, dst, protocol, ports, ACK, body)
            if protocol == TCP and rng.random() < 0.8:
                return Faces(lie, self.segment(src, dst, TCP, ports, SYN, body), TCP, TCP)
        else:
            protocol, port = rng.choice(ALLOWED_PORTS)
            ports = (rng.randrange(1024, 65536), port)
            lie = self.segment(src, dst, protocol, ports, rng.choice((SYN, ACK)), body)
        other = protocol if rng.random() < 0.85 else TCP + UDP - protocol
        if other != protocol:
            # The TCP header is 12 bytes longer than the UDP header.
            body = body[12:] if other == TCP else body + rng.randbytes(12)
        port = rng.choice(DENIED_PORTS[other])
        truth = self.segment(src, dst, other, (ports[0], port), rng.choice((SYN, SYN, ACK)), body)
        if len(truth) > len(lie):
            lie += bytes(len(truth) - len(lie))
        return Faces(lie, truth, protocol, other)

    def frame(self, track: Track, version: int, packet: bytes, gso_size: int = 0) -> Frame:
        kind = build.IPV4_TYPE if version == 4 else build.IPV6_TYPE
        return Frame(build.ether(B_MAC, track.a_mac, kind, packet), gso_size)

    def packet(self, version: int, src: bytes, dst: bytes, protocol: int, payload: bytes) -> bytes:
        if version == 4:
            return build.ipv4(src, dst, protocol, payload, ident=self.next_ident())
        return build.ipv6(src, dst, protocol, payload)
