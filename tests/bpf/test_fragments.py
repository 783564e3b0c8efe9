"""Fragments: the headers that are judged are those that the receiver puts together, whatever is sent in which order."""

from __future__ import annotations

import itertools
import struct
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import DropReason
from nodenet.bpf.packet_run import run_packet
from nodenet.model import Direction

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

CLIENT, SERVER = 1000, 2000
INGRESS, EGRESS = abi.EndpointFlag.ISOLATED_INGRESS, abi.EndpointFlag.ISOLATED_EGRESS
INVALID = DropReason.INVALID_PACKET_DROPPED
BAD_EXTENSION = DropReason.INVALID_IPV6_EXTENSION_HEADER
# The programs alone fill nn_frag, so each test has a datagram of its own.
_numbers = itertools.count(1)
UNKNOWN_FIRST = DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND


class Wire:
    """An isolated pod that may reach its peer at TCP 80 and UDP 53, and the other way around."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath, self.version = datapath, version
        self.pod, self.peer = ("10.0.1.1", "10.0.2.2") if version == 4 else ("fd00:1::1", "fd00:2::2")
        self.number = next(_numbers)
        self.isolate(INGRESS | EGRESS)
        datapath.identity(self.peer, SERVER)
        for direction in (Direction.EGRESS, Direction.INGRESS):
            datapath.allow(CLIENT, SERVER, direction, 6, 80)
            datapath.allow(CLIENT, SERVER, direction, 17, 53)

    def isolate(self, flags: int) -> None:
        self.datapath.endpoint(self.pod, CLIENT, number=1, flags=flags)

    def piece(self, protocol: int, at: int, body: bytes, *, more: bool, inwards: bool = False, to: str = "") -> Packet:
        """A fragment: `at` bytes of its datagram come before it."""
        ends = {"src": self.peer, "dst": self.pod} if inwards else {"src": self.pod, "dst": to or self.peer}
        if self.version == 4:
            return IP(**ends, id=self.number, flags="MF" if more else 0, frag=at // 8, proto=protocol) / Raw(body)
        header = IPv6ExtHdrFragment(id=self.number, m=int(more), offset=at // 8, nh=protocol)
        return IPv6(**ends, nh=44) / header / Raw(body)

    def verdict(self, packet: Packet, inwards: bool = False, gso_size: int = 0) -> int:
        program = self.datapath.loaded.programs["endpoint_ingress" if inwards else "endpoint_egress"]
        frame = bytes(Ether(src=POD_MAC, dst="02:00:00:00:00:bb") / packet)
        return run_packet(program, frame, gso_size=gso_size).verdict

    def why(self, packet: Packet, inwards: bool = False, gso_size: int = 0) -> int:
        self.datapath.events()
        assert self.verdict(packet, inwards, gso_size) == TC_SHOT
        return -self.datapath.events()[-1].reason


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def wire(request: pytest.FixtureRequest, datapath: Datapath) -> Wire:
    return Wire(datapath, request.param)


both_ways = pytest.mark.parametrize("inwards", [False, True], ids=["egress", "ingress"])


def tcp(flags: str, dport: int = 80, sport: int = 40000) -> bytes:
    return bytes(TCP(sport=sport, dport=dport, flags=flags))


def udp(dport: int = 53) -> bytes:
    return bytes(UDP(sport=40000, dport=dport, len=800, chksum=1))


@both_ways
def test_a_first_fragment_holds_its_fixed_header(wire: Wire, inwards: bool) -> None:
    """What it lacks comes from the second one: TCP's flags, or an ICMP error's quote."""
    direction = Direction.INGRESS if inwards else Direction.EGRESS
    wire.datapath.allow(CLIENT, SERVER, direction)
    whole = {6: 20, 132: 12}
    for protocol, least in whole.items():
        body = tcp("S") + bytes(12)
        for size in range(8, 33, 8):
            piece = wire.piece(protocol, 0, body[:size], more=True, inwards=inwards)
            assert wire.verdict(piece, inwards) == (TC_OK if size >= least else TC_SHOT), (protocol, size)


@both_ways
def test_flags_cannot_come_from_the_second_fragment_of_a_known_flow(wire: Wire, inwards: bool) -> None:
    """An ACK of an allowed flow, cut so that the kernel takes the flags from the next fragment: a SYN."""
    wire.isolate(EGRESS if inwards else INGRESS)
    opening = wire.piece(6, 0, tcp("S"), more=False, inwards=not inwards)
    assert wire.verdict(opening, not inwards) == TC_OK
    answer = bytes(TCP(sport=80, dport=40000, flags="A"))
    for size in (8, 14, 16, 19):
        assert wire.why(wire.piece(6, 0, answer[:size], more=True, inwards=inwards), inwards) == INVALID
    assert wire.verdict(wire.piece(6, 0, answer + bytes(4), more=True, inwards=inwards), inwards) == TC_OK


@both_ways
def test_only_the_last_fragment_has_another_length_than_a_multiple_of_8(wire: Wire, inwards: bool) -> None:
    for extra in range(1, 8):
        odd = wire.piece(17, 0, udp() + bytes(8 + extra), more=True, inwards=inwards)
        assert wire.why(odd, inwards) == INVALID
    assert wire.verdict(wire.piece(17, 0, udp() + bytes(8), more=True, inwards=inwards), inwards) == TC_OK
    assert wire.why(wire.piece(17, 16, bytes(9), more=True, inwards=inwards), inwards) == INVALID
    assert wire.verdict(wire.piece(17, 16, bytes(9), more=False, inwards=inwards), inwards) == TC_OK


@both_ways
def test_no_later_fragment_writes_over_the_headers(wire: Wire, inwards: bool) -> None:
    """The published first fragment is whole; what follows starts inside it."""
    assert wire.verdict(wire.piece(6, 0, tcp("S"), more=False, inwards=inwards), inwards) == TC_OK
    assert wire.verdict(wire.piece(6, 0, tcp("A") + bytes(12), more=True, inwards=inwards), inwards) == TC_OK
    for at in (8, 16):
        assert wire.why(wire.piece(6, at, tcp("S", 81)[at:], more=False, inwards=inwards), inwards) == INVALID
    assert wire.verdict(wire.piece(6, 24, bytes(8), more=False, inwards=inwards), inwards) == TC_OK
    # It says another protocol: IPv6's receivers believe the first one, IPv4's do not put the two together.
    other = wire.piece(17, 8, bytes(16), more=False, inwards=inwards)
    assert wire.why(other, inwards) == (INVALID if wire.version == 6 else UNKNOWN_FIRST)


def test_no_later_fragment_writes_over_extension_headers(datapath: Datapath) -> None:
    wire = Wire(datapath, 6)
    chain = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]) / UDP(sport=40000, dport=53, len=800, chksum=1)
    first = bytes(chain)
    assert len(first) == 24
    assert wire.verdict(wire.piece(60, 0, first, more=True)) == TC_OK
    for at in (8, 16):
        assert wire.why(wire.piece(60, at, bytes(16), more=False)) == INVALID
    assert wire.verdict(wire.piece(60, 24, bytes(16), more=False)) == TC_OK


def test_ipv4_datagrams_of_two_protocols_may_have_one_number(datapath: Datapath) -> None:
    """Receivers tell them apart by the protocol (RFC 791): the allowed one's ports say nothing about the other."""
    wire = Wire(datapath, 4)
    assert wire.verdict(wire.piece(17, 0, udp() + bytes(16), more=True)) == TC_OK
    assert wire.why(wire.piece(6, 24, bytes(16), more=False)) == UNKNOWN_FIRST
    assert wire.verdict(wire.piece(6, 0, tcp("S") + bytes(4), more=True)) == TC_OK
    assert wire.verdict(wire.piece(17, 24, bytes(16), more=False)) == TC_OK


@both_ways
def test_every_first_fragment_is_judged_by_its_own_ports(wire: Wire, inwards: bool) -> None:
    """Also behind an allowed one of the same number, in any order: the kernel may take either."""
    good = wire.piece(17, 0, udp(53) + bytes(8), more=True, inwards=inwards)
    bad = wire.piece(17, 0, udp(54) + bytes(8), more=True, inwards=inwards)
    longer = wire.piece(17, 0, udp(54) + bytes(16), more=True, inwards=inwards)
    last = wire.piece(17, 16, bytes(5), more=False, inwards=inwards)
    for packet in (bad, good, bad, longer, last, good, last):
        wanted = TC_SHOT if packet in (bad, longer) else TC_OK
        assert wire.verdict(packet, inwards) == wanted


def test_empty_and_oversized_fragments_are_dropped(wire: Wire) -> None:
    assert wire.verdict(wire.piece(17, 0, udp() + bytes(8), more=True)) == TC_OK
    assert wire.why(wire.piece(17, 800, b"", more=False)) == INVALID
    limit = 65528 - (24 if wire.version == 4 else 0)
    assert wire.verdict(wire.piece(17, limit, bytes(3), more=False)) == TC_OK
    assert wire.why(wire.piece(17, limit, bytes(16), more=False)) == INVALID  # the "ping of death"


def test_a_fragment_is_not_cut_into_segments(wire: Wire) -> None:
    """A device that cuts it into fragments counts their offsets from 0: a later one would become a first one."""
    assert wire.verdict(wire.piece(17, 0, udp() + bytes(8), more=True)) == TC_OK
    assert wire.why(wire.piece(17, 16, bytes(16), more=False), gso_size=8) == INVALID
    assert wire.why(wire.piece(17, 0, udp() + bytes(8), more=True), gso_size=8) == INVALID


@pytest.mark.parametrize("inner", ["first", "atomic", "later"])
def test_a_fragment_of_a_fragment_is_dropped(datapath: Datapath, inner: str) -> None:
    wire = Wire(datapath, 6)
    offset, more = {"first": (0, 1), "atomic": (0, 0), "later": (4, 0)}[inner]
    nested = struct.pack("!BBHI", 17, 0, offset << 3 | more, 3) + udp() + bytes(8)
    for outer in (True, False):
        assert wire.why(wire.piece(44, 0, nested, more=outer)) == BAD_EXTENSION
    behind_options = bytes([44, 0, 1, 4, 0, 0, 0, 0]) + nested
    assert wire.why(wire.piece(60, 0, behind_options, more=True)) == BAD_EXTENSION


def test_an_atomic_fragment_is_a_whole_packet(datapath: Datapath) -> None:
    """RFC 6946: it needs no first one, and its number says nothing about others."""
    wire = Wire(datapath, 6)
    assert wire.verdict(wire.piece(6, 0, tcp("S"), more=False)) == TC_OK
    assert wire.verdict(wire.piece(17, 0, bytes(UDP(sport=1, dport=53)) + b"odd", more=False)) == TC_OK
    assert wire.why(wire.piece(6, 0, tcp("S", 81), more=False)) == DropReason.POLICY_DENIED
    assert wire.why(wire.piece(17, 24, bytes(8), more=False)) == UNKNOWN_FIRST


def test_fragments_pass_in_any_order_where_no_policy_is_asked(wire: Wire) -> None:
    pieces = [
        wire.piece(17, 0, udp(99) + bytes(16), more=True),
        wire.piece(17, 24, bytes(24), more=True),
        wire.piece(17, 48, bytes(3), more=False),
    ]
    inwards = [
        wire.piece(17, 0, udp(99) + bytes(16), more=True, inwards=True),
        wire.piece(17, 24, bytes(24), more=True, inwards=True),
        wire.piece(17, 48, bytes(3), more=False, inwards=True),
    ]
    # Isolated for one direction: the other one goes on.
    wire.isolate(INGRESS)
    for order in ((2, 1, 0), (0, 2, 1)):
        wire.number = next(_numbers)
        assert [wire.verdict(pieces[at]) for at in order] == [TC_OK] * 3
    assert [wire.verdict(inwards[at], True) for at in (2, 1, 0)] == [TC_SHOT] * 3
    wire.isolate(EGRESS)
    assert [wire.verdict(inwards[at], True) for at in (2, 1, 0)] == [TC_OK] * 3


@pytest.mark.parametrize("flags", [INGRESS, EGRESS, INGRESS | EGRESS, 0], ids=["ingress", "egress", "both", "none"])
@both_ways
def test_an_early_fragment_needs_a_direction_without_policy(wire: Wire, flags: int, inwards: bool) -> None:
    """Also where a rule allows the peer everything: which rule, only the first fragment can say."""
    wire.isolate(flags)
    wire.datapath.allow(CLIENT, SERVER, Direction.EGRESS)
    wire.datapath.allow(CLIENT, SERVER, Direction.INGRESS)
    lone = wire.piece(17, 800, bytes(8), more=False, inwards=inwards)
    if flags & (INGRESS if inwards else EGRESS):
        assert wire.why(lone, inwards) == UNKNOWN_FIRST
    else:
        assert wire.verdict(lone, inwards) == TC_OK
        assert wire.datapath.events() == []
    assert not list(wire.datapath.tables["nn_ct"].items())  # it opens no flow


def test_both_pods_of_a_node_judge_an_early_fragment(wire: Wire) -> None:
    """The sender's policy and the receiver's, each by itself."""
    lone = wire.piece(17, 800, bytes(8), more=False)
    for sender, receiver, wanted in ((0, INGRESS, TC_SHOT), (EGRESS, 0, TC_SHOT), (INGRESS, EGRESS, TC_REDIRECT)):
        wire.isolate(sender)
        wire.datapath.endpoint(wire.peer, SERVER, number=2, ifindex=OTHER_IFINDEX, flags=receiver)
        assert wire.verdict(lone) == wanted, (sender, receiver)


def test_an_early_fragment_to_a_service_has_no_backend(wire: Wire) -> None:
    wire.isolate(0)
    service, hairpin = ("10.96.0.10", "169.254.42.1") if wire.version == 4 else ("fd00:96::10", "100::1")
    wire.datapath.tables["nn_service_addr"].update(
        abi.AddressKey(ip_address(service)), abi.U32(abi.AddressFlag.REFUSE_UNSERVED)
    )
    for target in (service, hairpin):
        assert wire.why(wire.piece(17, 800, bytes(8), more=False, to=target)) == UNKNOWN_FIRST


def test_an_early_fragment_does_not_start_inside_its_header(wire: Wire) -> None:
    wire.isolate(0)
    for protocol, least in ((6, 20), (132, 12), (17, 8)):
        for at in (8, 16, 24):
            lone = wire.piece(protocol, at, bytes(16), more=False)
            assert wire.verdict(lone) == (TC_OK if at >= least else TC_SHOT), (protocol, at)
