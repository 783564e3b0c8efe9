"""What a pod may say on the link, where no policy is asked: about itself alone, and no more than a host has to say."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

import pytest
from scapy.layers.inet import IP, TCP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import DropReason
from nodenet.bpf import libbpf
from nodenet.bpf.packet_run import run_packet
from nodenet.model import Identity

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_SHOT, TEST_IFINDEX, Datapath

pytestmark = pytest.mark.kernel

CLIENT, OTHER = 1000, 3000
BOTH = abi.EndpointFlag.ISOLATED_INGRESS | abi.EndpointFlag.ISOLATED_EGRESS
OWN, MATE, GATEWAY, ALL = "fd00:1::1", "fd00:1::9", "fd00:1::fe", "ff02::1"
# RFC 4291, appendix A, of POD_MAC and of another pod's MAC.
OWN_LINK, MATE_LINK = "fe80::ff:fe00:1", "fe80::ff:fe00:9"
SPOOF, BAD, FORBIDDEN = (
    DropReason.INVALID_SOURCE_IP,
    DropReason.INVALID_PACKET_DROPPED,
    DropReason.FORBIDDEN_ICMPV6_MESSAGE,
)
# nn_claim is the programs' alone: every test has addresses of its own that follow from no MAC.
_identifiers = (f"fe80::1234:{number:x}" for number in itertools.count(1))


class Link:
    """An isolated pod that has named its own address, so that its MAC is known."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        datapath.endpoint(OWN, CLIENT, number=1, flags=BOTH)
        datapath.endpoint("10.0.1.1", CLIENT, number=1, flags=BOTH)
        datapath.identity(GATEWAY, Identity.HOST)
        assert datapath.sent(IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=OWN)) == TC_OK

    def why(self, packet: Packet) -> int:
        self.datapath.events()
        assert self.datapath.sent(packet) == TC_SHOT, packet.summary()
        return -self.datapath.events()[-1].reason

    def why_received(self, packet: Packet) -> int:
        self.datapath.events()
        assert self.datapath.received(packet) == TC_SHOT, packet.summary()
        return -self.datapath.events()[-1].reason


class Programs:
    """The two maps that the programs fill by themselves, by their records' bytes."""

    def __init__(self, datapath: Datapath, name: str) -> None:
        self.path = str(datapath.pins.map(name))

    def items(self, key_size: int, value_size: int) -> dict[bytes, bytes]:
        found, key, value = {}, ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(value_size)
        with self._open() as fd:
            previous = None
            while libbpf.lib().bpf_map_get_next_key(fd, previous, key) == 0:
                if libbpf.lib().bpf_map_lookup_elem(fd, key, value) == 0:
                    found[key.raw] = value.raw
                previous = key
        return found

    def put(self, key: bytes, value: bytes) -> None:
        with self._open() as fd:
            libbpf.check(libbpf.lib().bpf_map_update_elem(fd, key, value, 0), self.path)

    def drop(self, key: bytes) -> None:
        with self._open() as fd:
            libbpf.check(libbpf.lib().bpf_map_delete_elem(fd, key), self.path)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        fd = libbpf.obj_get(self.path)
        try:
            yield fd
        finally:
            os.close(fd)


def claimed(datapath: Datapath) -> set[IPv6Address]:
    return {IPv6Address(key) for key in Programs(datapath, "nn_claim").items(16, 4)}


@pytest.fixture
def link(datapath: Datapath) -> Link:
    return Link(datapath)


def claims(address: str) -> list[Packet]:
    """Every message by which a neighbour learns that the sender has `address`."""
    mine = IPv6(src=OWN, dst=ALL, hlim=255)
    its = IPv6(src=address, dst=ALL, hlim=255)
    source, target = ICMPv6NDOptSrcLLAddr(lladdr=POD_MAC), ICMPv6NDOptDstLLAddr(lladdr=POD_MAC)
    return [
        mine / ICMPv6ND_NA(tgt=address, R=1, O=1) / target,
        its / ICMPv6ND_NA(tgt=address, O=1) / target,
        its / ICMPv6ND_NS(tgt=GATEWAY) / source,
        its / ICMPv6ND_NS(tgt=OWN) / source,
        its / ICMPv6ND_NA(tgt=OWN) / target,
        its / ICMPv6ND_RS() / source,
        IPv6(src="::", dst="ff02::1:ff00:9", hlim=255) / ICMPv6ND_NS(tgt=address),
        IPv6(src=address, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2(),
    ]


def test_the_address_of_the_own_mac_is_the_pods(link: Link) -> None:
    for claim in claims(OWN_LINK):
        assert link.datapath.sent(claim) == TC_OK, claim.summary()


@pytest.mark.parametrize("whose", ["gateway's of its MAC", "another pod's", "gateway's by hand", "not of this link"])
def test_a_foreign_link_local_address_is_not_the_pods(link: Link, whose: str) -> None:
    address = {
        "gateway's of its MAC": "fe80::ff:fe00:bb",
        "another pod's": MATE_LINK,
        "gateway's by hand": "fe80::1",
        "not of this link": "fe80:0:0:1::1",
    }[whose]
    if whose == "gateway's by hand":
        link.datapath.identity(address, Identity.HOST)
    for claim in claims(address):
        assert link.why(claim) == SPOOF, claim.summary()


def test_another_address_is_the_pods_that_named_it_first(link: Link) -> None:
    """Addresses that follow from no MAC (RFC 7217, 8981): a virtual machine's, or set by hand."""
    data, address = link.datapath, next(_identifiers)
    for claim in claims(address):
        assert data.sent(claim) == TC_OK, claim.summary()
    becomes_another_pod(link, address)
    for claim in claims(address):
        assert link.why(claim) == SPOOF, claim.summary()
    # The first one went away.
    data.tables["nn_endpoint"].delete(abi.AddressKey(ip_address(MATE)))
    assert data.sent(claims(address)[0]) == TC_OK


def becomes_another_pod(link: Link, address: str) -> None:
    """What this interface's pod has said becomes another interface's, and here another pod begins: BPF_PROG_TEST_RUN
    knows one interface alone."""
    data = link.datapath
    data.endpoint(MATE, OTHER, number=9, ifindex=OTHER_IFINDEX)
    here, there = (number.to_bytes(4, "little") for number in (TEST_IFINDEX, OTHER_IFINDEX))
    ports = Programs(data, "nn_port")
    entry = ports.items(4, 40)[here]
    ports.put(there, entry[:8] + ip_address(MATE).packed + entry[24:])
    ports.drop(here)
    Programs(data, "nn_claim").put(ip_address(address).packed, there)
    assert data.sent(IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=OWN)) == TC_OK


def test_one_address_at_a_time(link: Link) -> None:
    """So a flood of claims pushes nobody out of the table: the last one frees the one before."""
    data = link.datapath
    first, second = next(_identifiers), next(_identifiers)
    for address in (first, second, first, second):
        assert data.sent(claims(address)[0]) == TC_OK
    assert claimed(data) & {ip_address(first), ip_address(second)} == {ip_address(second)}


def test_nothing_is_claimed_before_the_mac_is_known(datapath: Datapath) -> None:
    datapath.endpoint(OWN, CLIENT, number=1)
    address = next(_identifiers)
    for claim in (*claims(address)[1:3], *claims(OWN_LINK)[5:7]):
        assert datapath.sent(claim) == TC_SHOT, claim.summary()
        assert datapath.events() == []
    assert ip_address(address) not in claimed(datapath)


def test_a_foreign_mac_claims_nothing(link: Link) -> None:
    address = next(_identifiers)
    for claim in claims(address):
        assert link.datapath.run("endpoint_egress", claim, mac="02:00:00:00:00:09").verdict == TC_SHOT
    assert ip_address(address) not in claimed(link.datapath)
    for option in (ICMPv6NDOptSrcLLAddr, ICMPv6NDOptDstLLAddr):
        lie = option(lladdr="02:00:00:00:00:09")
        assert link.why(IPv6(src=OWN, dst=ALL, hlim=255) / ICMPv6ND_NA(tgt=OWN) / lie) == SPOOF
        assert link.why(IPv6(src=OWN, dst=ALL, hlim=255) / ICMPv6ND_NS(tgt=MATE) / lie) == SPOOF


def test_detection_of_duplicates_is_about_the_own_address(link: Link) -> None:
    """For another pod's address it would take that one away before it is used."""
    link.datapath.endpoint(MATE, OTHER, number=9, ifindex=OTHER_IFINDEX)
    for target in (MATE, GATEWAY):
        assert link.why(IPv6(src="::", dst="ff02::1:ff00:9", hlim=255) / ICMPv6ND_NS(tgt=target)) == SPOOF


def test_only_routers_query_and_advertise(link: Link) -> None:
    link_source = {"src": OWN_LINK, "dst": ALL}
    router_alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])
    assert link.why(IPv6(**link_source, hlim=1) / router_alert / ICMPv6MLQuery()) == FORBIDDEN
    assert link.why(IPv6(**link_source, hlim=1) / router_alert / ICMPv6MLQuery(mladdr="ff02::5")) == FORBIDDEN
    assert link.why(IPv6(**link_source, hlim=255) / ICMPv6ND_RA()) == FORBIDDEN
    for message in (ICMPv6MLReport(mladdr="ff02::5"), ICMPv6MLDone(mladdr="ff02::5"), ICMPv6MLReport2()):
        assert link.datapath.sent(IPv6(**link_source, hlim=1) / router_alert / message) == TC_OK


@pytest.mark.parametrize("size", [8, 12, 40], ids=["IGMPv2", "IGMPv3", "long"])
def test_igmp_queries_are_routers_too(link: Link, size: int) -> None:
    data = link.datapath
    data.endpoint("10.0.1.1", CLIENT, number=1)  # not isolated
    everyone = IP(src="10.0.1.1", dst="224.0.0.1", ttl=1, proto=2, options=[IPOption_Router_Alert()])
    assert link.why(everyone / Raw(b"\x11" + bytes(size - 1))) == DropReason.MULTICAST_HANDLED
    assert data.sent(everyone / Raw(b"\x16" + bytes(size - 1))) == TC_OK  # a report


def option(kind: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BB", kind, length) + body.ljust(6, b"\0")


def test_no_payload_rides_on_neighbour_discovery(link: Link) -> None:
    """Nobody but policy may decide about 200 bytes from an isolated pod to others."""
    mac = bytes.fromhex(POD_MAC.replace(":", ""))
    ask = IPv6(src=OWN, dst=MATE, hlim=255) / ICMPv6ND_NS(tgt=MATE)
    link.datapath.endpoint(MATE, OTHER, number=9, ifindex=OTHER_IFINDEX)
    for good in (b"", option(1, 1, mac), option(14, 1, b"nonce!"), option(14, 1) + option(1, 1, mac)):
        assert link.datapath.sent(ask / Raw(good)) == TC_OK
    assert link.why(ask / Raw(option(1, 1, mac) + b"Z" * 200)) in (BAD, FORBIDDEN)
    assert link.why(ask / Raw(option(1, 26, mac) + b"Z" * 200)) == FORBIDDEN
    assert link.why(ask / Raw(option(14, 1) * 3)) == BAD
    assert link.why(ask / Raw(option(200, 1, b"secret"))) == FORBIDDEN
    assert link.why(ask / Raw(option(1, 0, mac))) == FORBIDDEN
    assert link.why(ask / Raw(b"Z" * 5)) == BAD
    assert link.why(IPv6(src=OWN_LINK, dst="ff02::2", hlim=255) / ICMPv6ND_RS() / Raw(b"Z" * 200)) in (BAD, FORBIDDEN)


def test_no_payload_rides_around_neighbour_discovery(link: Link) -> None:
    message = ICMPv6ND_NS(tgt=MATE)
    head = IPv6(src=OWN, dst=ALL, hlim=255)
    secret = PadN(optdata=b"Z" * 12)
    assert link.why(head / IPv6ExtHdrDestOpt(options=[secret]) / message) == BAD
    assert link.why(head / IPv6ExtHdrHopByHop(options=[secret]) / message) == BAD
    report = IPv6(src=OWN_LINK, dst="ff02::16", hlim=1)
    assert link.why(report / IPv6ExtHdrHopByHop(options=[secret]) / ICMPv6MLReport2()) == BAD
    frame = bytes(Ether(src=POD_MAC, dst="33:33:00:00:00:01") / head / message) + b"Z" * 200
    assert run_packet(link.datapath.loaded.programs["endpoint_egress"], frame).verdict == TC_SHOT


def test_neighbour_discovery_comes_in_no_fragments(link: Link) -> None:
    """RFC 6980: also from a pod that no policy isolates, and also for a pod whose kernel would take them."""
    link.datapath.endpoint(OWN, CLIENT, number=1)
    for more in (0, 1):
        header = IPv6ExtHdrFragment(nh=58, m=more)
        body = ICMPv6ND_NA(tgt=GATEWAY) / Raw(bytes(8))
        assert link.why(IPv6(src=OWN, dst=ALL, hlim=255) / header / body) == FORBIDDEN
        assert link.why_received(IPv6(src=MATE, dst=OWN, hlim=255) / header / body) == FORBIDDEN


def test_pods_hear_neighbours_and_routers_questions_alone(link: Link) -> None:
    data = link.datapath
    heard = IPv6(src="fe80::bb", dst=ALL, hlim=255)
    query = IPv6(src="fe80::bb", dst=ALL, hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    for packet in (heard / ICMPv6ND_NS(tgt=OWN), heard / ICMPv6ND_NA(tgt=GATEWAY), query / ICMPv6MLQuery()):
        assert data.received(packet) == TC_OK, packet.summary()
    assert link.why_received(heard / ICMPv6ND_RA()) == FORBIDDEN
    data.events()
    for packet in (
        heard / ICMPv6ND_RS(),
        query / ICMPv6MLReport2() / Raw(b"Z" * 200),
        query / ICMPv6MLReport(),
        query / ICMPv6MLDone(),
    ):
        frame = bytes(Ether(src="02:00:00:00:00:09", dst="33:33:00:00:00:02") / packet)
        assert run_packet(data.loaded.programs["endpoint_ingress"], frame).verdict == TC_SHOT
    assert data.events() == []  # flooded to every pod: nothing to tell


def test_arp_carries_nothing_else(link: Link) -> None:
    ask = ARP(hwsrc=POD_MAC, psrc="10.0.1.1", pdst="10.0.1.254")
    assert link.datapath.sent(ask) == TC_OK
    assert link.datapath.sent(ask / Raw(bytes(18))) == TC_OK  # Ethernet's shortest frame
    assert link.why(ask / Raw(bytes(19))) == BAD
    for at, field in ((6, b"\0\3"), (6, b"\0\10"), (0, b"\0\6"), (2, b"\x86\xdd"), (4, b"\10"), (5, b"\20")):
        raw = bytearray(bytes(ask))
        raw[at : at + len(field)] = field
        frame = bytes(Ether(src=POD_MAC, dst="ff:ff:ff:ff:ff:ff", type=0x806)) + bytes(raw)
        assert run_packet(link.datapath.loaded.programs["endpoint_egress"], frame).verdict == TC_SHOT, (at, field)


def test_what_is_no_link_control_has_no_link_local_source(link: Link) -> None:
    assert link.why(IPv6(src=OWN_LINK, dst=MATE_LINK) / TCP(dport=80)) == SPOOF
