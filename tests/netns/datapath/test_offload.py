"""What leaves the node is what was judged: unfinished checksums and segments of a pod's packets, over a real device.

The pod sends through PACKET_VNET_HDR, as any process with CAP_NET_RAW can. For the device behind the bridge the kernel
finishes checksums in software, as for every NIC without that offload.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, GRE, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from nodenet.abi import DropReason
from nodenet.link import netns, tc
from nodenet.link.handle import Link

from .conftest import FAR, FAR_MAC, PATIENCE, POD, POD_MAC, Wire

pytestmark = pytest.mark.kernel

ETHERNET = 14
V4, V6 = ETHERNET + 20, ETHERNET + 40
# Where the kernel lets a virtio header's checksum start, at the earliest.
FIRST = 20
MARKER = b"the last frame of this test"
# linux/virtio_net.h
_NEEDS_CSUM = 1
GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 1, 3, 4, 5


def frame(packet: Packet) -> bytes:
    return bytes(Ether(src=POD_MAC, dst=FAR_MAC) / packet)


def unfinished(start: int, offset: int, gso: int = 0, size: int = 0, headers: int = 0) -> bytes:
    """struct virtio_net_hdr: a checksum from byte `start` on, to be written `offset` bytes behind it."""
    return struct.pack("<BBHHHH", _NEEDS_CSUM, gso, headers, size, start, offset)


def finished(data: bytes) -> bytes:
    """RFC 1071, over everything from where the checksum starts."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF or 0xFFFF)


@contextmanager
def rewriting(pod: str, at: int, byte: int) -> Iterator[None]:
    """While the block runs, a filter of the pod's own writes one byte of every packet that leaves it."""
    code = [
        struct.pack("=BBhi", 0x72, 10, -1, byte),  # *(u8 *)(r10 - 1) = byte
        struct.pack("=BBhi", 0xB7, 2, 0, at),  # bpf_skb_store_bytes(ctx, at, r10 - 1, 1, 0)
        struct.pack("=BBhi", 0xBF, 0xA3, 0, 0),
        struct.pack("=BBhi", 0x07, 3, 0, -1),
        struct.pack("=BBhi", 0xB7, 4, 0, 1),
        struct.pack("=BBhi", 0xB7, 5, 0, 0),
        struct.pack("=BBhi", 0x85, 0, 0, 9),
        struct.pack("=BBhi", 0xB7, 0, 0, 0),  # return TC_ACT_OK
        struct.pack("=BBhi", 0x95, 0, 0, 0),
    ]
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    library.bpf_prog_load.argtypes = [
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p),
        *(ctypes.c_size_t, ctypes.c_void_p),
    ]
    fd = library.bpf_prog_load(3, b"rewrite", b"GPL", b"".join(code), len(code), None)
    assert fd > 0, os.strerror(ctypes.get_errno())
    try:
        with Link(pod) as link:
            index = link.require("eth0").index
            tc.attach(link, index, tc.Hook.EGRESS, fd, "rewrite")
            try:
                yield
            finally:
                tc.detach(link, index, tc.Hook.EGRESS, "rewrite")
    finally:
        os.close(fd)


def ip(version: int) -> Packet:
    layer = IP if version == 4 else IPv6
    return layer(src=POD[version], dst=FAR[version])


def arrived(wire: Wire) -> list[bytes]:
    """What came over the device of what the pod sent before this."""
    wire.send(frame(ip(4) / UDP(sport=9, dport=9) / MARKER))
    return wire.receive_until(MARKER)[:-1]


@dataclass(frozen=True, slots=True)
class Lie:
    """A packet whose checksum "belongs" at start + offset: what that place is."""

    name: str
    packet: Packet
    start: int
    offset: int


TAIL = Raw(b"x" * 24)
LIES = [
    Lie("v6 source address", ip(6) / UDP(sport=7, dport=53) / TAIL, FIRST, 16),
    Lie("v6 destination address", ip(6) / TCP(sport=7, dport=53) / TAIL, V6, 0),
    Lie("v6 next header", ip(6) / UDP(sport=7, dport=53) / TAIL, FIRST, 0),
    Lie("v6 extension header", ip(6) / IPv6ExtHdrDestOpt() / UDP(sport=7, dport=53) / TAIL, V6, 0),
    Lie("v4 source address", ip(4) / UDP(sport=7, dport=53) / TAIL, FIRST, 8),
    Lie("v4 flags and fragment offset", ip(4) / UDP(sport=7, dport=53) / TAIL, FIRST, 0),
    Lie("udp destination port", ip(4) / UDP(sport=7, dport=53) / TAIL, V4, 2),
    Lie("udp source port", ip(6) / UDP(sport=7, dport=53) / TAIL, V6, 0),
    Lie("udp length", ip(4) / UDP(sport=7, dport=53) / TAIL, V4, 4),
    Lie("the right place of the wrong protocol", ip(4) / TCP(sport=7, dport=80) / TAIL, V4, 6),
    Lie("tcp flags", ip(4) / TCP(sport=7, dport=80, flags="A") / TAIL, V4, 12),
    Lie("tcp payload", ip(4) / TCP(sport=7, dport=80, flags="A") / TAIL, V4 + 20, 4),
    Lie("tcp's place, summed from the payload", ip(6) / TCP(sport=7, dport=80, flags="A") / TAIL, V6 + 4, 12),
    Lie("sctp verification tag", ip(4) / SCTP(sport=7, dport=80) / TAIL, V4, 4),
    Lie("icmp type", ip(4) / ICMP() / TAIL, V4, 0),
    Lie("icmp quote", ip(4) / ICMP(type=3, code=4) / IP(src=FAR[4], dst=POD[4]) / UDP() / TAIL, V4 + 8, 12),
    Lie("icmpv6 identifier", ip(6) / ICMPv6EchoRequest() / TAIL, V6, 4),
    Lie("gre: the outer header", ip(4) / GRE() / ip(4) / UDP() / TAIL, FIRST, 10),
    Lie("farther than 8 bits reach", ip(4) / UDP(sport=7, dport=4789) / Raw(b"x" * 400), V4 + 8, 256 + 26 - V4 - 8),
    Lie(
        "a first fragment's own checksum",
        IP(src=POD[4], dst=FAR[4], id=7, flags="MF") / UDP(sport=7, dport=53, len=60) / TAIL,
        V4,
        6,
    ),
    Lie(
        "a v6 fragment's checksum",
        ip(6) / IPv6ExtHdrFragment(id=9, m=1) / UDP(sport=7, dport=53, len=60) / TAIL,
        V6 + 8,
        6,
    ),
    Lie("arp sender", ARP(op=1, hwsrc=POD_MAC, psrc=POD[4], pdst=FAR[4]) / TAIL, FIRST, 8),
    Lie(
        "neighbour discovery target",
        IPv6(src=POD[6], dst="ff02::1:ff00:2", hlim=255)
        / ICMPv6ND_NS(tgt=FAR[6])
        / ICMPv6NDOptSrcLLAddr(lladdr=POD_MAC),
        V6,
        22,
    ),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_a_checksum_elsewhere_is_dropped(wire: Wire, lie: Lie) -> None:
    wire.drops()
    wire.send(frame(lie.packet), unfinished(lie.start, lie.offset))
    assert arrived(wire) == []
    assert wire.drops() == [DropReason.ERROR_WHILE_CORRECTING_L4_CHECKSUM]


HONEST = [
    Lie("tcp", ip(4) / TCP(sport=7, dport=80, flags="A") / TAIL, V4, 16),
    Lie("tcp v6", ip(6) / TCP(sport=7, dport=80, flags="A") / TAIL, V6, 16),
    Lie("udp", ip(4) / UDP(sport=7, dport=53) / TAIL, V4, 6),
    Lie("udp v6", ip(6) / UDP(sport=7, dport=53) / TAIL, V6, 6),
    Lie("tcp behind options", IP(src=POD[4], dst=FAR[4], options=b"\x01" * 8) / TCP(dport=80) / TAIL, V4 + 8, 16),
    Lie("udp behind an extension header", ip(6) / IPv6ExtHdrDestOpt() / UDP(dport=53) / TAIL, V6 + 8, 6),
    Lie("sctp", ip(4) / SCTP(sport=7, dport=80) / TAIL, V4, 8),
    Lie("icmpv6", ip(6) / ICMPv6EchoRequest() / TAIL, V6, 2),
    Lie("udp in vxlan", ip(4) / UDP(dport=4789) / VXLAN() / Ether() / IP() / UDP() / TAIL, V4 + 8 + 8 + V4, 6),
    Lie("tcp in gre", ip(6) / GRE() / IP() / TCP() / TAIL, V6 + 4 + 20, 16),
    Lie("tcp in ip", ip(4) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / TAIL, V4 + 20, 16),
]


@pytest.mark.parametrize("honest", HONEST, ids=lambda honest: honest.name)
def test_a_checksum_in_its_place_is_finished(wire: Wire, honest: Lie) -> None:
    sent, at = frame(honest.packet), honest.start + honest.offset
    wire.send(sent, unfinished(honest.start, honest.offset))
    (got,) = arrived(wire)
    assert (got[:at], got[at + 2 :]) == (sent[:at], sent[at + 2 :])
    assert got[at : at + 2] == finished(sent[honest.start :])
    assert wire.drops() == []


@pytest.mark.parametrize(
    ("packet", "start", "offset", "gso", "count"),
    [
        (ip(4) / TCP(sport=7, dport=80, flags="A"), V4, 16, GSO_TCPV4, 3),
        (ip(6) / TCP(sport=7, dport=80, flags="A"), V6, 16, GSO_TCPV6, 3),
        (ip(4) / UDP(sport=7, dport=80), V4, 6, GSO_UDP_L4, 3),
        (ip(6) / UDP(sport=7, dport=80), V6, 6, GSO_UDP_L4, 3),
        (ip(4) / UDP(sport=7, dport=80), V4, 6, GSO_UDP, 4),
    ],
)
def test_segments_of_the_parsed_protocol_pass(
    wire: Wire, packet: Packet, start: int, offset: int, gso: int, count: int
) -> None:
    sent = frame(packet / Raw(b"x" * 3000))
    try:
        wire.send(sent, unfinished(start, offset, gso, 1000, start + offset + 2))
    except OSError as error:
        if gso == GSO_UDP_L4 and error.errno == errno.EINVAL:
            pytest.skip("this kernel takes no UDP segments from a raw socket (6.2 does)")
        raise
    got = arrived(wire)
    assert len(got) == count
    version = 4 if start == V4 else 6
    ends = slice(V4 - 8, V4) if version == 4 else slice(V6 - 32, V6)
    assert {segment[ends] for segment in got} == {sent[ends]}
    assert wire.drops() == []


@pytest.mark.parametrize("flags", ["MF", "DF+MF"])
def test_a_fragment_is_not_segmented(wire: Wire, flags: str) -> None:
    """Each segment of it would be a fragment of another packet, with a number that was not judged."""
    packet = IP(src=POD[4], dst=FAR[4], id=5, flags=flags) / TCP(sport=7, dport=80, flags="A") / Raw(b"x" * 3000)
    wire.drops()
    wire.send(frame(packet), unfinished(V4, 16, GSO_TCPV4, 1000, V4 + 20))
    assert arrived(wire) == []
    assert len(wire.drops()) == 1


def test_segments_of_another_protocol_are_dropped(wire: Wire) -> None:
    """A pod's own filter changes the protocol of what its TCP has made: the device would cut it as TCP all the same."""
    with netns.open_socket(wire.far, socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((FAR[4], 8080))
        server.listen()
        with netns.open_socket(wire.pod, socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            client.connect((FAR[4], 8080))
            with rewriting(wire.pod, at=ETHERNET + 9, byte=47):
                wire.drops()
                client.send(b"x" * 8000)
            arrived(wire)
            assert DropReason.INVALID_PACKET_DROPPED in wire.drops()
