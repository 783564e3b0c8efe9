"""The tc programs, packet by packet."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtStatus, DropReason, EventType
from nodenet.bpf.packet_run import run_packet
from nodenet.model import Direction, Identity

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

CLIENT, SERVER = 1000, 2000
INGRESS, EGRESS = abi.EndpointFlag.ISOLATED_INGRESS, abi.EndpointFlag.ISOLATED_EGRESS
FAMILIES = {4: ("10.0.1.1", "10.0.2.2", IP), 6: ("fd00:1::1", "fd00:2::2", IPv6)}


class Pair:
    """A local pod and a remote one, in one family."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath = datapath
        self.pod, self.remote, self.ip = FAMILIES[version]

    def out(self, layer: Packet) -> Packet:
        return self.ip(src=self.pod, dst=self.remote) / layer

    def back(self, layer: Packet) -> Packet:
        return self.ip(src=self.remote, dst=self.pod) / layer

    def isolate(self, flags: int) -> None:
        self.datapath.endpoint(self.pod, CLIENT, number=1, flags=flags)
        self.datapath.identity(self.remote, SERVER)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest, datapath: Datapath) -> Pair:
    pair = Pair(datapath, request.param)
    pair.isolate(0)
    return pair


def tcp(flags: str = "S", sport: int = 40000, dport: int = 80) -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags)


def reply(flags: str = "SA", sport: int = 80, dport: int = 40000) -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags)


def test_unisolated_pod_sends_and_receives(pair: Pair) -> None:
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    assert pair.datapath.received(pair.back(tcp(sport=50000))) == TC_OK
    first, second = pair.datapath.events()
    assert (first.type, first.ct_status, first.direction) == (EventType.POLICY_VERDICT, CtStatus.NEW, Direction.EGRESS)
    assert (first.src_identity, first.dst_identity, first.sport, first.dport) == (CLIENT, SERVER, 40000, 80)
    assert (str(first.saddr), str(first.daddr)) == (pair.pod, pair.remote)
    assert (second.direction, second.src_identity, second.dst_identity) == (Direction.INGRESS, SERVER, CLIENT)
    assert first.ip_version == (6 if ":" in pair.pod else 4)


def test_default_deny_drops_and_says_why(pair: Pair) -> None:
    pair.isolate(EGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_SHOT
    (event,) = pair.datapath.events()
    assert (event.type, -event.reason, event.endpoint_id) == (EventType.DROP, DropReason.POLICY_DENIED, 1)
    counted = dict(pair.datapath.tables["nn_metrics"].items())
    per_cpu = counted[abi.MetricsKey(DropReason.POLICY_DENIED, Direction.EGRESS)]
    assert sum(value.packets for value in per_cpu) == 1


def test_ingress_isolation_leaves_egress_alone(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.received(pair.back(tcp())) == TC_SHOT
    assert pair.datapath.sent(pair.out(tcp(sport=41000))) == TC_OK


def test_allowed_port_passes_others_do_not(pair: Pair) -> None:
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80, rule=99)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    assert pair.datapath.events()[0].rule_id == 99
    assert pair.datapath.sent(pair.out(tcp(dport=81))) == TC_SHOT
    assert pair.datapath.sent(pair.out(UDP(sport=1, dport=80))) == TC_SHOT


def test_port_range_is_a_prefix(pair: Pair) -> None:
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 8080, bits=12)  # 8080-8095
    assert pair.datapath.sent(pair.out(tcp(dport=8080))) == TC_OK
    assert pair.datapath.sent(pair.out(tcp(dport=8095))) == TC_OK
    assert pair.datapath.sent(pair.out(tcp(dport=8096))) == TC_SHOT
    assert pair.datapath.sent(pair.out(tcp(dport=8079))) == TC_SHOT


def test_direction_is_part_of_the_rule(pair: Pair) -> None:
    pair.isolate(INGRESS | EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.INGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_SHOT
    assert pair.datapath.received(pair.back(tcp())) == TC_OK


def test_everyone_and_region_rules(pair: Pair) -> None:
    pair.isolate(EGRESS)
    region = (1 << 24) | 5
    block = "10.0.2.0/24" if pair.ip is IP else "fd00:2::/64"
    pair.datapath.region(block, region)
    pair.datapath.allow(CLIENT, region, Direction.EGRESS, 6, 443)
    pair.datapath.allow(CLIENT, 0, Direction.EGRESS, 17, 53)
    assert pair.datapath.sent(pair.out(tcp(dport=443))) == TC_OK
    assert pair.datapath.sent(pair.out(tcp(dport=80))) == TC_SHOT
    assert pair.datapath.sent(pair.out(UDP(sport=5, dport=53))) == TC_OK


def test_except_is_a_more_specific_region(pair: Pair) -> None:
    pair.isolate(EGRESS)
    wide, hole = (1 << 24) | 5, (1 << 24) | 6
    block, inside = ("10.0.0.0/8", "10.0.2.0/24") if pair.ip is IP else ("fd00::/16", "fd00:2::/64")
    pair.datapath.region(block, wide)
    pair.datapath.allow(CLIENT, wide, Direction.EGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    pair.datapath.region(inside, hole)
    assert pair.datapath.sent(pair.out(tcp(sport=40001))) == TC_SHOT


def test_own_node_is_always_allowed(pair: Pair) -> None:
    pair.isolate(INGRESS | EGRESS)
    pair.datapath.identity(pair.remote, Identity.HOST)
    assert pair.datapath.received(pair.back(tcp())) == TC_OK
    assert pair.datapath.sent(pair.out(tcp(sport=40001))) == TC_OK


def test_replies_pass_where_the_request_did(pair: Pair) -> None:
    pair.isolate(INGRESS | EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80)
    assert pair.datapath.received(pair.back(reply())) == TC_SHOT  # nothing asked for it
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    pair.datapath.events()
    assert pair.datapath.received(pair.back(reply())) == TC_OK
    (event,) = pair.datapath.events()
    assert (event.type, event.ct_status, event.is_reply) == (EventType.TRACE, CtStatus.REPLY, 1)
    assert pair.datapath.sent(pair.out(tcp("A"))) == TC_OK
    assert pair.datapath.events() == []  # nothing new to tell


def test_a_syn_from_the_other_side_is_not_a_reply(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    assert pair.datapath.received(pair.back(reply("S"))) == TC_SHOT
    assert pair.datapath.received(pair.back(reply("SA"))) == TC_OK


def test_udp_replies(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.received(pair.back(UDP(sport=53, dport=5000))) == TC_SHOT
    assert pair.datapath.sent(pair.out(UDP(sport=5000, dport=53))) == TC_OK
    assert pair.datapath.received(pair.back(UDP(sport=53, dport=5000))) == TC_OK
    assert pair.datapath.received(pair.back(UDP(sport=53, dport=5001))) == TC_SHOT


def test_policy_change_cuts_established_flows_and_their_replies(pair: Pair) -> None:
    pair.isolate(EGRESS)
    key = pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    assert pair.datapath.received(pair.back(reply())) == TC_OK
    pair.datapath.tables["nn_policy"].delete(key)
    pair.datapath.revision(2)
    assert pair.datapath.sent(pair.out(tcp("A"))) == TC_SHOT
    # Not isolated for ingress, and still no way in through the denied flow.
    assert pair.datapath.received(pair.back(reply("A"))) == TC_SHOT


def test_policy_change_that_still_allows_keeps_the_flow_and_notes_the_rule(pair: Pair) -> None:
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80, rule=1)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80, rule=2)
    pair.datapath.revision(2)
    assert pair.datapath.received(pair.back(reply())) == TC_OK
    ((_, entry),) = pair.datapath.tables["nn_ct"].items()
    assert (entry.rule_id, entry.revision, entry.direction) == (2, 2, Direction.EGRESS)


def test_source_address_is_checked(pair: Pair) -> None:
    spoofed = pair.ip(src=pair.remote, dst=pair.pod) / tcp()
    assert pair.datapath.sent(spoofed) == TC_SHOT
    assert -pair.datapath.events()[0].reason == DropReason.INVALID_SOURCE_IP


def test_ipv4_mapped_addresses_on_the_wire_are_invalid(datapath: Datapath) -> None:
    datapath.endpoint("10.0.1.1", CLIENT, number=1)
    packet = IPv6(src="::ffff:10.0.1.1", dst="fd00::2") / tcp()
    assert datapath.sent(packet) == TC_SHOT
    assert -datapath.events()[0].reason == DropReason.INVALID_PACKET_DROPPED
    assert datapath.received(IPv6(src="fd00::2", dst="::ffff:10.0.1.1") / tcp()) == TC_SHOT


def test_another_pods_address_is_a_spoof_too(pair: Pair) -> None:
    other = "10.0.1.9" if pair.ip is IP else "fd00:1::9"
    pair.datapath.endpoint(other, 3000, number=2, ifindex=OTHER_IFINDEX)
    assert pair.datapath.sent(pair.ip(src=other, dst=pair.remote) / tcp()) == TC_SHOT


def test_same_node_packets_meet_both_policies_and_skip_the_bridge(pair: Pair) -> None:
    pair.datapath.endpoint(pair.remote, SERVER, number=2, ifindex=OTHER_IFINDEX, flags=INGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_SHOT
    verdict, drop = pair.datapath.events()
    assert (verdict.type, verdict.direction) == (EventType.POLICY_VERDICT, Direction.EGRESS)
    assert (drop.type, drop.direction, drop.endpoint_id) == (EventType.DROP, Direction.INGRESS, 2)
    pair.datapath.allow(SERVER, CLIENT, Direction.INGRESS, 6, 80)
    run = pair.datapath.run("endpoint_egress", pair.out(tcp(sport=40002)))
    assert run.verdict == TC_REDIRECT
    assert run.packet[:6].hex(":") == "02:00:00:00:00:02"


def test_packet_for_nobody_is_not_delivered(pair: Pair) -> None:
    stranger = "10.0.1.77" if pair.ip is IP else "fd00:1::77"
    assert pair.datapath.received(pair.ip(src=pair.remote, dst=stranger) / tcp()) == TC_SHOT
    assert -pair.datapath.events()[0].reason == DropReason.DROP_EP_NOT_READY


def test_flooded_packet_for_another_pod_is_dropped_quietly(pair: Pair) -> None:
    other = "10.0.1.9" if pair.ip is IP else "fd00:1::9"
    pair.datapath.endpoint(other, 3000, number=2, ifindex=OTHER_IFINDEX)
    assert pair.datapath.received(pair.ip(src=pair.remote, dst=other) / tcp()) == TC_SHOT
    assert pair.datapath.events() == []


def test_flooded_multicast_is_dropped_quietly_and_counted(datapath: Datapath) -> None:
    datapath.endpoint("10.0.1.1", CLIENT, number=1)
    report = Ether(src="02:00:00:00:00:aa", dst="01:00:5e:00:00:16") / IP(src="10.0.1.254", dst="224.0.0.22", proto=2)
    assert run_packet(datapath.loaded.programs["endpoint_ingress"], bytes(report / Raw(b"x" * 8))).verdict == TC_SHOT
    assert datapath.events() == []
    assert abi.MetricsKey(DropReason.MULTICAST_HANDLED, Direction.INGRESS) in dict(
        datapath.tables["nn_metrics"].items()
    )


def test_icmp_needs_a_rule_without_ports(pair: Pair) -> None:
    ping = ICMP() if pair.ip is IP else ICMPv6EchoRequest()
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, 80)
    assert pair.datapath.sent(pair.out(ping)) == TC_SHOT
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS)
    assert pair.datapath.sent(pair.out(ping)) == TC_OK


def unreachable(source: str, target: str, quoted: bytes) -> Packet:
    return IP(src=source, dst=target) / ICMP(type=3, code=4) / Raw(quoted)


def test_icmp_error_about_an_own_flow_is_related(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(INGRESS)
    sent = pair.out(UDP(sport=5000, dport=53))
    router = unreachable("10.9.9.9", pair.pod, bytes(sent)[:28])
    assert datapath.received(router) == TC_SHOT  # about nothing that was sent
    assert datapath.sent(sent) == TC_OK
    assert datapath.received(router) == TC_OK


def test_icmp_error_goes_to_whom_it_quotes_and_is_about_the_pods_own_flow(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(EGRESS)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 53)
    asked, answered = pair.out(UDP(sport=5000, dport=53)), pair.back(UDP(sport=53, dport=5000))
    assert datapath.sent(asked) == TC_OK
    quote = bytes(answered)[:28]
    assert datapath.sent(unreachable(pair.pod, pair.remote, quote)) == TC_OK  # what a host sends
    assert datapath.sent(unreachable(pair.pod, "8.8.8.8", quote)) == TC_SHOT  # what a tunnel sends
    # Another pod's flow opens nothing for this one.
    datapath.endpoint("10.0.1.9", 3000, number=2, flags=INGRESS)
    assert datapath.received(unreachable("10.9.9.9", "10.0.1.9", bytes(asked)[:28])) == TC_SHOT


def test_icmp_error_shares_the_verdict_on_its_flow(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(EGRESS | INGRESS)
    key = datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 53)
    sent = pair.out(UDP(sport=5000, dport=53))
    router = unreachable("10.9.9.9", pair.pod, bytes(sent)[:28])
    assert datapath.sent(sent) == TC_OK
    assert datapath.received(router) == TC_OK
    datapath.tables["nn_policy"].delete(key)
    datapath.revision(2)
    assert datapath.received(router) == TC_SHOT


def test_an_echo_request_is_never_a_reply(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(INGRESS)
    assert datapath.sent(pair.out(ICMP(type=8, id=7))) == TC_OK
    assert datapath.received(pair.back(ICMP(type=8, id=7))) == TC_SHOT
    assert datapath.received(pair.back(ICMP(type=0, id=7))) == TC_OK


def test_arp_only_for_the_own_address_and_mac(datapath: Datapath) -> None:
    datapath.endpoint("10.0.1.1", CLIENT, number=1)
    assert datapath.sent(ARP(hwsrc=POD_MAC, psrc="10.0.1.1", pdst="10.0.1.254")) == TC_OK
    assert datapath.sent(ARP(hwsrc=POD_MAC, psrc="0.0.0.0", pdst="10.0.1.1")) == TC_OK
    assert datapath.sent(ARP(hwsrc=POD_MAC, psrc="10.0.1.254", pdst="10.0.1.1", op="is-at")) == TC_SHOT
    assert datapath.sent(ARP(hwsrc="02:00:00:00:00:09", psrc="10.0.1.1", pdst="10.0.1.254")) == TC_SHOT


def test_a_foreign_source_mac_teaches_the_bridge_nothing(pair: Pair) -> None:
    run = pair.datapath.run("endpoint_egress", pair.out(tcp()), mac="02:00:00:00:00:09")
    assert run.verdict == TC_SHOT
    assert -pair.datapath.events()[0].reason == DropReason.INVALID_SOURCE_IP
    claim = ARP(hwsrc=POD_MAC, psrc="10.0.1.1", pdst="10.0.1.254")
    assert pair.datapath.run("endpoint_egress", claim, mac="02:00:00:00:00:09").verdict == TC_SHOT


def test_link_local_frames_teach_the_bridge_nothing_either(datapath: Datapath) -> None:
    """They name no address of the pod's, so its MAC is taken from what it has said before about its own address."""
    datapath.endpoint("fd00:1::1", CLIENT, number=1)
    foreign = "02:00:00:00:00:09"
    report = IPv6(src="fe80::1", dst="ff02::16", hlim=1) / ICMPv6MLReport2()
    probe = IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="fd00:1::1")
    link = IPv6(src="::", dst="ff02::1:ff00:9", hlim=255) / ICMPv6ND_NS(tgt="fe80::9")
    told = IPv6(src="fe80::9", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="fe80::9")
    for packet in (report, link, told):  # nothing is known yet: a kernel's first words on any link
        assert datapath.sent(packet) == TC_SHOT
    assert datapath.events() == []
    for packet in (report, probe, link, told):
        assert datapath.run("endpoint_egress", packet, mac=foreign).verdict == TC_SHOT
    datapath.events()
    assert datapath.sent(probe) == TC_OK  # is somebody else here with my address?
    for packet in (report, probe, link, told):
        assert datapath.sent(packet) == TC_OK
        assert datapath.run("endpoint_egress", packet, mac=foreign).verdict == TC_SHOT
        assert -datapath.events()[-1].reason == DropReason.INVALID_SOURCE_IP
    datapath.endpoint("fd00:1::1", CLIENT, number=9)
    assert datapath.run("endpoint_egress", probe, mac=foreign).verdict == TC_OK  # another pod, behind this interface
    assert datapath.run("endpoint_egress", report, mac=foreign).verdict == TC_OK
    assert datapath.sent(report) == TC_SHOT


def test_neighbour_discovery_only_for_the_own_address(datapath: Datapath) -> None:
    datapath.endpoint("fd00:1::1", CLIENT, number=1, flags=INGRESS | EGRESS)
    datapath.identity("fd00:1::fe", Identity.HOST)
    own = IPv6(src="fd00:1::1", dst="ff02::1:ff00:2", hlim=255)
    assert datapath.sent(own / ICMPv6ND_NS(tgt="fd00:1::2")) == TC_OK
    assert datapath.sent(own / ICMPv6ND_NA(tgt="fd00:1::1")) == TC_OK
    assert datapath.sent(own / ICMPv6ND_NA(tgt="fd00:1::2")) == TC_SHOT
    gateway = IPv6(src="fd00:1::1", dst="fd00:1::fe", hlim=255)
    assert datapath.sent(gateway / ICMPv6ND_NS(tgt="fd00:1::fe")) == TC_OK
    assert datapath.sent(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA()) == TC_SHOT
    listener = IPv6(src="fe80::1", dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop()
    assert datapath.sent(listener / ICMPv6MLReport2()) == TC_OK
    assert datapath.sent(IPv6(src="fe80::1", dst="fd00:1::2") / TCP()) == TC_SHOT
    asking = IPv6(src="fd00:1::fe", dst="ff02::1:ff00:1", hlim=255)
    assert datapath.received(asking / ICMPv6ND_NS(tgt="fd00:1::1")) == TC_OK
    assert datapath.received(IPv6(src="fe80::9", dst="ff02::1", hlim=255) / ICMPv6ND_RA()) == TC_SHOT


def test_what_only_looks_like_link_control_is_judged(datapath: Datapath) -> None:
    datapath.endpoint("fd00:1::1", CLIENT, number=1, flags=INGRESS | EGRESS)
    datapath.endpoint("10.0.1.1", CLIENT, number=1, flags=INGRESS | EGRESS)
    own = {"src": "fd00:1::1", "dst": "2001:db8::1"}
    for packet in (
        IP(src="10.0.1.1", dst="8.8.8.8", proto=58) / Raw(bytes([143, 0, 0, 0]) + b"x" * 40),
        IPv6(**own, hlim=255) / ICMPv6ND_NS(tgt="fd00:1::1"),  # off the link
        IPv6(**own, hlim=64) / ICMPv6ND_NS(tgt="fd00:1::1"),
        IPv6(**own, hlim=1) / ICMPv6MLReport2(),
        IPv6(src="fe80::dead", dst="2001:db8::1", hlim=1) / ICMPv6MLReport2(),
        IPv6(src="fd00:1::1", dst="ff02::16", hlim=64) / ICMPv6MLReport2(),
        IPv6(src="fd00:1::1", dst="ff02::1", hlim=255) / IPv6ExtHdrFragment(nh=58, m=1) / ICMPv6ND_NS(tgt="fd00:1::2"),
    ):
        assert datapath.sent(packet) == TC_SHOT, packet.summary()
    for packet in (
        IP(src="8.8.8.8", dst="10.0.1.1", proto=58) / Raw(bytes([135, 0, 0, 0]) + b"x" * 40),
        IPv6(src="2001:db8::1", dst="fd00:1::1", hlim=64) / ICMPv6ND_NA(tgt="fd00:1::9"),
    ):
        assert datapath.received(packet) == TC_SHOT, packet.summary()


def test_flows_of_the_last_owner_are_not_inherited(pair: Pair) -> None:
    assert pair.datapath.sent(pair.out(UDP(sport=5000, dport=5001))) == TC_OK
    assert pair.datapath.received(pair.back(UDP(sport=5001, dport=5000))) == TC_OK
    pair.datapath.endpoint(pair.pod, 4000, number=9, flags=INGRESS)
    assert pair.datapath.received(pair.back(UDP(sport=5001, dport=5000))) == TC_SHOT


def rewrite(datapath: Datapath, **changes: int) -> None:
    """Change the one conntrack entry, as time or another CPU would."""
    ((key, entry),) = datapath.tables["nn_ct"].items()
    datapath.tables["nn_ct"].update(key, entry._replace(**changes))


def monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000_000


def test_flows_expire(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.sent(pair.out(UDP(sport=5000, dport=53))) == TC_OK
    rewrite(pair.datapath, last_seen=monotonic() - 59)
    assert pair.datapath.received(pair.back(UDP(sport=53, dport=5000))) == TC_OK
    rewrite(pair.datapath, last_seen=monotonic() - 200)
    assert pair.datapath.received(pair.back(UDP(sport=53, dport=5000))) == TC_SHOT


def test_an_entry_touched_by_a_cpu_that_is_ahead_is_alive(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    rewrite(pair.datapath, last_seen=monotonic() + 2)
    assert pair.datapath.received(pair.back(reply())) == TC_OK


def test_a_reset_that_nobody_believed_is_taken_back(pair: Pair) -> None:
    pair.isolate(INGRESS)
    assert pair.datapath.sent(pair.out(tcp())) == TC_OK
    assert pair.datapath.received(pair.back(reply("R"))) == TC_OK
    rewrite(pair.datapath, last_seen=monotonic() - 5)
    assert pair.datapath.sent(pair.out(tcp("A"))) == TC_OK
    ((_, entry),) = pair.datapath.tables["nn_ct"].items()
    assert not entry.flags & abi.CtFlag.RST
    rewrite(pair.datapath, last_seen=monotonic() - 100)
    assert pair.datapath.received(pair.back(reply("A"))) == TC_OK


def test_a_service_address_never_leaves_untranslated(pair: Pair) -> None:
    address = ip_address("10.96.0.10" if pair.ip is IP else "fd00:96::10")
    key = abi.AddressKey(address)
    pair.datapath.tables["nn_service_addr"].update(key, abi.U32(abi.AddressFlag.REFUSE_UNSERVED))
    try:
        run = pair.datapath.run("endpoint_egress", pair.ip(src=pair.pod, dst=str(address)) / UDP(sport=1, dport=9))
        assert run.verdict == TC_REDIRECT
        # The answer that refuses it.
        answer = Ether(run.packet)[pair.ip]
        assert (answer.src, answer.dst, answer.haslayer(UDP)) == (str(address), pair.pod, False)
        assert -pair.datapath.events()[0].reason == DropReason.IS_A_CLUSTERIP
    finally:
        pair.datapath.tables["nn_service_addr"].delete(key)


def test_a_dropped_first_fragment_decides_about_nothing(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(EGRESS)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 53)

    def pieces(dport: int) -> list[Packet]:
        big = pair.out(UDP(sport=5000, dport=dport) / Raw(b"x" * 3000))
        big.id = 78
        return list(fragment(big, fragsize=1400))

    good, bad = pieces(53), pieces(54)
    assert datapath.sent(good[0]) == TC_OK
    assert datapath.sent(bad[0]) == TC_SHOT
    assert datapath.sent(good[1]) == TC_OK
    quoting = unreachable("10.9.9.9", pair.pod, bytes(bad[0])[:28])
    datapath.received(quoting)
    assert datapath.sent(good[2]) == TC_OK


def test_ipv4_fragments_follow_the_first(datapath: Datapath) -> None:
    pair = Pair(datapath, 4)
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 53)
    big = pair.out(UDP(sport=5000, dport=53) / Raw(b"x" * 3000))
    big.id = 77
    first, *rest = fragment(big, fragsize=1400)
    assert datapath.sent(rest[0]) == TC_SHOT
    assert -datapath.events()[0].reason == DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND
    assert [datapath.sent(p) for p in (first, *rest)] == [TC_OK] * (1 + len(rest))


def test_ipv6_fragments_and_extension_headers(datapath: Datapath) -> None:
    pair = Pair(datapath, 6)
    pair.isolate(EGRESS)
    pair.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 53)
    first = pair.out(IPv6ExtHdrFragment(id=9, m=1, nh=17) / UDP(sport=5000, dport=53, len=2000) / Raw(b"x" * 1200))
    later = pair.out(IPv6ExtHdrFragment(id=9, m=0, offset=151, nh=17) / Raw(b"x" * 700))
    options = pair.out(IPv6ExtHdrFragment(id=8, m=1, nh=60) / IPv6ExtHdrDestOpt() / UDP(sport=5000, dport=53, len=900))
    behind = pair.out(IPv6ExtHdrFragment(id=8, m=0, offset=100, nh=60) / Raw(b"x" * 100))
    assert datapath.sent(later) == TC_SHOT
    assert datapath.sent(first) == TC_OK
    assert datapath.sent(later) == TC_OK
    assert [datapath.sent(options), datapath.sent(behind)] == [TC_OK, TC_OK]
    assert datapath.sent(pair.out(IPv6ExtHdrDestOpt() / UDP(sport=5000, dport=53))) == TC_OK
    assert datapath.sent(pair.out(IPv6ExtHdrDestOpt() / UDP(sport=5000, dport=54))) == TC_SHOT


def test_truncated_packets_are_dropped_as_invalid(pair: Pair) -> None:
    frame = bytes(Ether(src=POD_MAC, dst="02:00:00:00:00:bb") / pair.out(tcp()))
    header = 14 + (20 if pair.ip is IP else 40)
    program = pair.datapath.loaded.programs["endpoint_egress"]
    # The kernel refuses a test packet without a whole IP header; the cuts go through the transport header.
    for length in (header, header + 3, header + 13):
        pair.datapath.events()
        assert run_packet(program, frame[:length]).verdict == TC_SHOT
        assert -pair.datapath.events()[0].reason == DropReason.INVALID_PACKET_DROPPED


def test_closed_flow_is_forgotten_soon(pair: Pair) -> None:
    for packet, send in (
        (pair.out(tcp()), pair.datapath.sent),
        (pair.back(reply()), pair.datapath.received),
        (pair.out(tcp("FA")), pair.datapath.sent),
        (pair.back(reply("FA")), pair.datapath.received),
    ):
        assert send(packet) == TC_OK
    ((_, entry),) = pair.datapath.tables["nn_ct"].items()
    assert entry.flags == abi.CtFlag.SEEN_REPLY | abi.CtFlag.FIN_FORWARD | abi.CtFlag.FIN_REPLY
    pair.isolate(EGRESS)
    rewrite(pair.datapath, last_seen=monotonic() - 30)
    run = pair.datapath.run("endpoint_egress", pair.out(tcp("A")))
    assert (run.verdict, Ether(run.packet)[TCP].flags) == (TC_REDIRECT, "R")
