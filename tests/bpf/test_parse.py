"""Every header lies inside the IP packet: neither kernel nor programs read what the frame holds behind its end."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import DropReason
from nodenet.bpf.packet_run import run_packet
from nodenet.model import Direction

from .conftest import POD_MAC, TC_OK, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

CLIENT, SERVER = 1000, 2000
INGRESS, EGRESS = abi.EndpointFlag.ISOLATED_INGRESS, abi.EndpointFlag.ISOLATED_EGRESS
INVALID = DropReason.INVALID_PACKET_DROPPED
SYN = bytes(TCP(sport=40000, dport=80, flags="S"))
QUERY = bytes(UDP(sport=40000, dport=53, len=8))


class Wire:
    """An isolated pod and a peer, TCP 80 and UDP 53 allowed both ways; frames by hand, so that lengths can lie."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath, self.version = datapath, version
        self.pod, self.peer = ("10.0.1.1", "10.0.2.2") if version == 4 else ("fd00:1::1", "fd00:2::2")
        self.header = 20 if version == 4 else 40
        datapath.endpoint(self.pod, CLIENT, number=1, flags=INGRESS | EGRESS)
        datapath.identity(self.peer, SERVER)
        for direction in (Direction.EGRESS, Direction.INGRESS):
            datapath.allow(CLIENT, SERVER, direction, 6, 80)
            datapath.allow(CLIENT, SERVER, direction, 17, 53)

    def frame(self, protocol: int, body: bytes, *, cut: int = 0, inwards: bool = False, options: bytes = b"") -> bytes:
        """`cut`: so many bytes at the end of `body` lie behind the end of the IP packet."""
        source, target = (self.peer, self.pod) if inwards else (self.pod, self.peer)
        ends = ip_address(source).packed + ip_address(target).packed
        length = len(body) - cut
        if self.version == 6:
            head = struct.pack("!IHBB", 6 << 28, length, protocol, 64) + ends
        else:
            words = 5 + len(options) // 4
            head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + length, 7, 0, 64, protocol, 0) + ends
        kind = b"\x86\xdd" if self.version == 6 else b"\x08\x00"
        return bytes.fromhex("0200000000bb" + POD_MAC.replace(":", "")) + kind + head + options + body

    def verdict(self, frame: bytes, *, inwards: bool = False, gso_size: int = 0) -> int:
        program = "endpoint_ingress" if inwards else "endpoint_egress"
        return run_packet(self.datapath.loaded.programs[program], frame, gso_size=gso_size).verdict

    def why(self, frame: bytes, *, inwards: bool = False, gso_size: int = 0) -> int:
        self.datapath.events()
        assert self.verdict(frame, inwards=inwards, gso_size=gso_size) == TC_SHOT
        return -self.datapath.events()[-1].reason


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def wire(request: pytest.FixtureRequest, datapath: Datapath) -> Wire:
    return Wire(datapath, request.param)


@pytest.mark.parametrize("inwards", [False, True], ids=["egress", "ingress"])
def test_a_transport_header_behind_the_end_is_not_read(wire: Wire, inwards: bool) -> None:
    for protocol, header in ((6, SYN), (17, QUERY)):
        assert wire.verdict(wire.frame(protocol, header, inwards=inwards), inwards=inwards) == TC_OK
        for cut in range(1, len(header) + 1):
            if wire.version == 6 and cut == len(header):
                continue  # a length of 0: below
            assert wire.why(wire.frame(protocol, header, cut=cut, inwards=inwards), inwards=inwards) == INVALID


@pytest.mark.parametrize("inwards", [False, True], ids=["egress", "ingress"])
def test_sctp_and_icmp_headers_behind_the_end_are_not_read(wire: Wire, inwards: bool) -> None:
    wire.datapath.allow(CLIENT, SERVER, Direction.INGRESS if inwards else Direction.EGRESS)
    echo = bytes(ICMP(id=7, seq=1)) if wire.version == 4 else bytes([128, 0, 0, 0, 0, 7, 0, 1])
    for protocol, header in ((132, struct.pack("!HHII", 1, 80, 0, 0)), (1 if wire.version == 4 else 58, echo)):
        assert wire.verdict(wire.frame(protocol, header, inwards=inwards), inwards=inwards) == TC_OK
        assert wire.why(wire.frame(protocol, header, cut=1, inwards=inwards), inwards=inwards) == INVALID


def test_padding_and_trailers_are_no_part_of_the_packet(wire: Wire) -> None:
    for size in (1, 18, 200):
        assert wire.verdict(wire.frame(6, SYN + b"\xff" * size, cut=size)) == TC_OK
        assert wire.verdict(wire.frame(17, QUERY + b"\xff" * size, cut=size, inwards=True), inwards=True) == TC_OK


def test_a_length_beyond_the_frame_is_invalid(wire: Wire) -> None:
    assert wire.why(wire.frame(6, SYN, cut=-1)) == INVALID
    assert wire.why(wire.frame(6, SYN, cut=-1, inwards=True), inwards=True) == INVALID


def test_ipv4_options_lie_inside_too(datapath: Datapath) -> None:
    wire = Wire(datapath, 4)
    options = b"\x01" * 8
    assert wire.verdict(wire.frame(6, SYN, options=options)) == TC_OK
    assert wire.why(wire.frame(6, SYN, cut=len(SYN) + 4, options=options)) == INVALID
    assert wire.why(wire.frame(6, SYN, cut=len(SYN) + 28, options=options)) == INVALID  # tot_len 0


@pytest.mark.parametrize("inwards", [False, True], ids=["egress", "ingress"])
@pytest.mark.parametrize("first", [0, 43, 51, 60], ids=["hop", "routing", "auth", "destination"])
def test_an_ipv6_extension_header_ends_inside(datapath: Datapath, first: int, inwards: bool) -> None:
    """Behind the end the sender may write what policy wants to see, and the kernel reads the next fragment instead."""
    wire = Wire(datapath, 6)
    long = struct.pack("!BBBB", 17, 4 if first == 51 else 2, 0, 0) + bytes(20)
    for head in (b"", struct.pack("!BBHI", first, 0, 1, 9)):
        outer = 44 if head else first
        assert wire.verdict(wire.frame(outer, head + long + QUERY, inwards=inwards), inwards=inwards) == TC_OK
        for cut in (len(QUERY) + 8, len(QUERY) + 16, len(QUERY) + 1):
            lying = wire.frame(outer, head + long + QUERY, cut=cut, inwards=inwards)
            why = wire.why(lying, inwards=inwards)
            assert why in (DropReason.INVALID_IPV6_EXTENSION_HEADER, INVALID)


@pytest.mark.parametrize("protocol", [47, 50, 59], ids=["gre", "esp", "none"])
def test_an_extension_header_ends_inside_also_in_front_of_what_is_not_read(datapath: Datapath, protocol: int) -> None:
    wire = Wire(datapath, 6)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS)
    options = struct.pack("!BBBB", protocol, 2, 1, 4) + bytes(20)
    for head in (b"", struct.pack("!BBHI", 60, 0, 1, 9)):
        outer = 44 if head else 60
        assert wire.verdict(wire.frame(outer, head + options + bytes(8))) == TC_OK
        lying = wire.frame(outer, head + options + bytes(8), cut=16)
        assert wire.why(lying) == DropReason.INVALID_IPV6_EXTENSION_HEADER


def test_length_0_is_big_tcp_alone(wire: Wire) -> None:
    """Only a TCP packet that a device has yet to segment may be longer than its length field can say."""

    def zero(protocol: int, body: bytes) -> bytes:
        return wire.frame(protocol, body, cut=len(body) + (20 if wire.version == 4 else 0))

    for inwards in (False, True):
        tcp = wire.frame(6, SYN, cut=len(SYN) + (20 if wire.version == 4 else 0), inwards=inwards)
        assert wire.verdict(tcp, inwards=inwards, gso_size=1400) == TC_OK
        assert wire.why(tcp, inwards=inwards) == INVALID
    assert wire.why(zero(17, QUERY), gso_size=1400) == INVALID
    wire.datapath.allow(CLIENT, SERVER, Direction.EGRESS)
    assert wire.why(zero(47, bytes(8)), gso_size=1400) == INVALID
    assert wire.why(zero(59, b""), gso_size=1400) == INVALID


def test_a_jumbo_option_is_big_tcps_alone(datapath: Datapath) -> None:
    wire = Wire(datapath, 6)

    def jumbo(next_header: int, length: int, body: bytes) -> bytes:
        option = struct.pack("!BBBBI", next_header, 0, 0xC2, 4, length)
        return wire.frame(0, option + body, cut=len(option + body))

    whole = 8 + len(SYN)
    assert wire.verdict(jumbo(6, whole, SYN), gso_size=1400) == TC_OK
    assert wire.why(jumbo(6, whole, SYN)) == INVALID
    assert wire.why(jumbo(6, whole - 1, SYN), gso_size=1400) == INVALID  # bytes behind the end again
    assert wire.why(jumbo(6, whole + 1, SYN), gso_size=1400) == INVALID
    assert wire.why(jumbo(17, 8 + len(QUERY), QUERY), gso_size=1400) == INVALID
    pad = struct.pack("!BBBB4x", 6, 0, 1, 4)
    assert wire.why(wire.frame(0, pad + SYN, cut=len(pad + SYN)), gso_size=1400) == INVALID


def error(wire: Wire, quote: bytes) -> tuple[int, bytes]:
    """An ICMP error's protocol and bytes."""
    return (1, b"\x03\x03" + bytes(6) + quote) if wire.version == 4 else (58, b"\x01\x04" + bytes(6) + quote)


@pytest.mark.parametrize("shape", ["whole", "8 bytes of transport"])
def test_a_quote_lies_inside_the_error_and_need_not_be_whole(wire: Wire, shape: str) -> None:
    sent = wire.frame(17, QUERY + b"x" * 100)
    assert wire.verdict(sent) == TC_OK
    quote = sent[14:] if shape == "whole" else sent[14 : 14 + wire.header + 8]
    protocol, body = error(wire, quote)
    assert wire.verdict(wire.frame(protocol, body, inwards=True), inwards=True) == TC_OK
    behind = len(quote) - wire.header - 3  # the quote's ports end behind the end of the error
    lying = wire.frame(protocol, body, cut=behind, inwards=True)
    assert wire.why(lying, inwards=True) == DropReason.POLICY_DENIED
    no_header = wire.frame(protocol, body, cut=len(quote) - 10, inwards=True)
    assert wire.why(no_header, inwards=True) == DropReason.POLICY_DENIED


def test_a_neighbours_target_lies_inside(datapath: Datapath) -> None:
    datapath.endpoint("fd00:1::1", CLIENT, number=1)
    claim = IPv6(src="fd00:1::1", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="fd00:1::1")
    assert datapath.sent(claim) == TC_OK
    for length in range(8, 24):
        claim.plen = length
        assert datapath.sent(claim) == TC_SHOT, length
        assert -datapath.events()[-1].reason == INVALID


def test_later_checks_see_the_same_end(wire: Wire) -> None:
    """A Service's packet with a trailer is rewritten inside the packet, and the trailer stays as it is."""
    service = "10.96.0.10" if wire.version == 4 else "fd00:96::10"
    tables, number = wire.datapath.tables, 41
    tables["nn_backend"].update(abi.U32(number), abi.AddressPort(ip_address(wire.peer), 53, 17))
    tables["nn_revnat"].update(abi.U32(number), abi.AddressPort(ip_address(service), 53, 17))
    for slot, entry in ((1, abi.FrontendEntry(number, number, 0)), (0, abi.FrontendEntry(0, number, 1))):
        tables["nn_frontend"].update(abi.FrontendKey(ip_address(service), 53, 17, slot), entry)
    tables["nn_service_addr"].update(abi.AddressKey(ip_address(service)), abi.U32(abi.AddressFlag.REFUSE_UNSERVED))
    layer = IP if wire.version == 4 else IPv6
    packet = bytes(
        Ether(src=POD_MAC, dst="02:00:00:00:00:bb") / layer(src=wire.pod, dst=service) / UDP(sport=4, dport=53)
    )
    trailer = b"T" * 20
    run = run_packet(wire.datapath.loaded.programs["endpoint_egress"], packet + trailer)
    assert run.verdict == TC_OK
    assert run.packet.endswith(trailer)
    rewritten = Ether(run.packet[: -len(trailer)])
    assert rewritten[layer].dst == wire.peer
    checksum = rewritten[UDP].chksum
    del rewritten[UDP].chksum
    assert Ether(bytes(rewritten))[UDP].chksum == checksum


def chain(*headers: Packet) -> Packet:
    packet = headers[0]
    for header in headers[1:]:
        packet = packet / header
    return packet


def test_every_shape_of_ipv6_chain_that_hides_a_port_is_dropped(datapath: Datapath) -> None:
    """The published attack and its relatives: the chain breaks off at each of its headers, in a first fragment."""
    wire = Wire(datapath, 6)
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
    shapes = [(options, options), (IPv6ExtHdrHopByHop(), options), (options, options, options)]
    for shape in shapes:
        head = IPv6(src=wire.pod, dst=wire.peer)
        fragment = IPv6ExtHdrFragment(m=1, id=5)
        packet = chain(head, fragment, *shape, UDP(sport=40000, dport=53), Raw(b"x" * 8))
        whole = bytes(packet)
        assert datapath.sent(IPv6(whole)) == TC_OK
        for plen in range(8, len(whole) - 40 - 8, 8):
            cut = whole[:4] + struct.pack("!H", plen) + whole[6:]
            frame = bytes.fromhex("0200000000bb" + POD_MAC.replace(":", "")) + b"\x86\xdd" + cut
            assert wire.verdict(frame) == TC_SHOT, (shape, plen)


def test_echo_and_unreachable_still_pass(datapath: Datapath) -> None:
    wire = Wire(datapath, 6)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS)
    assert datapath.sent(IPv6(src=wire.pod, dst=wire.peer) / ICMPv6EchoRequest(id=9)) == TC_OK
    quoted = IPv6(src=wire.peer, dst=wire.pod) / UDP(sport=53, dport=9)
    assert datapath.received(quoted) == TC_SHOT
    assert datapath.sent(IPv6(src=wire.pod, dst=wire.peer) / ICMPv6DestUnreach() / quoted) == TC_OK
