"""Packets that were made to get past the policy, to be taken for somebody's, or to disturb another's flow: Services
packet by packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtFlag, DropReason
from nodenet.bpf.packet_run import PacketRun, run_packet
from nodenet.model import Direction

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, TEST_IFINDEX, Datapath
from .test_service_packets import (
    CLIENT,
    EGRESS,
    INGRESS,
    PORT,
    SERVER,
    SERVICE_ID,
    SPORT,
    TARGET,
    World,
    ack,
    ends,
    recomputed,
    syn,
    syn_ack,
    udp,
)

pytestmark = pytest.mark.kernel
UNKNOWN = DropReason.UNKNOWN_CONNECTION_TRACKING_STATE


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath) -> Iterator[World]:
    yield World(datapath, request.param)
    datapath.reset()


def unreachable(world: World, quoted: bytes) -> Packet:
    """The ICMP error "nobody listens", with what it quotes."""
    error: Packet = ICMP(type=3, code=3) if world.ip is IP else ICMPv6DestUnreach(code=4)
    return error / Raw(quoted)


def not_received(world: World, packet: Packet, reason: DropReason) -> None:
    world.datapath.events()
    world.into(packet, TC_SHOT)
    assert -world.datapath.events()[-1].reason == reason


def change_hands(world: World, flags: int = 0) -> None:
    """The address goes to another pod, which gets another number."""
    key = abi.AddressKey(ip_address(world.pod))
    entry = world.datapath.tables["nn_endpoint"].get(key)
    assert isinstance(entry, abi.EndpointVersions)
    world.datapath.tables["nn_endpoint"].update(key, entry._replace(endpoint_id=9, flags=flags))


def test_a_pod_is_neither_a_service_nor_nobody(world: World) -> None:
    for address in (world.service, world.nobody, world.far):
        for target in (world.far, world.service, world.nobody, world.pod):
            world.refused(world.ip(src=address, dst=target) / syn(), DropReason.INVALID_SOURCE_IP)


def test_nothing_from_outside_comes_from_a_service(world: World) -> None:
    """A forged datagram would make an entry, and what the pod sends to the Service would pass as an answer in it."""
    program = world.datapath.loaded.programs["endpoint_ingress"]
    address = abi.AddressKey(ip_address(world.service))
    for layer in (udp(PORT, SPORT), syn_ack(PORT), syn(PORT)):
        frame = bytes(Ether(src=POD_MAC) / world.answer(layer, world.service))
        world.datapath.events()
        assert run_packet(program, frame, ingress_ifindex=OTHER_IFINDEX).verdict == TC_SHOT
        assert -world.datapath.events()[-1].reason == DropReason.INVALID_SOURCE_IP
    assert list(world.datapath.tables["nn_ct"].items()) == []
    assert world.out(world.call(udp())).dst == world.far
    # Other addresses with frontends may send: a node's own one. So may those beside kube-proxy, which are in no table.
    for number, flags in enumerate((0, None), 1):
        if flags is None:
            world.datapath.tables["nn_service_addr"].delete(address)
        else:
            world.datapath.tables["nn_service_addr"].update(address, abi.U32(flags))
        frame = bytes(Ether(src=POD_MAC) / world.answer(udp(PORT, SPORT + number), world.service))
        assert run_packet(program, frame, ingress_ifindex=OTHER_IFINDEX).verdict == TC_OK


def test_only_connections_reach_nobody(world: World) -> None:
    ping = ICMP() if world.ip is IP else ICMPv6EchoRequest()
    sent = bytes(world.call(udp()))
    for layer in (ping, udp(), ack(), Raw(b"x"), unreachable(world, sent)):
        world.refused(world.ip(src=world.pod, dst=world.nobody) / layer, UNKNOWN)


def test_the_next_owner_of_the_address_inherits_nothing(world: World) -> None:
    """Not the flow with itself, nor that with a backend, nor the errors about it."""
    world.serve(world.service, SERVICE_ID, world.pod)
    world.out(world.call(syn()), TC_REDIRECT)
    world.serve(world.service, SERVICE_ID, world.far)
    sent = world.out(world.call(syn(sport=7)))
    change_hands(world, INGRESS)
    world.refused(world.ip(src=world.pod, dst=world.nobody) / syn_ack(), UNKNOWN)
    not_received(world, world.answer(syn_ack(dport=7)), DropReason.POLICY_DENIED)
    not_received(world, world.answer(unreachable(world, bytes(sent))), DropReason.POLICY_DENIED)


def test_an_error_about_no_flow_of_the_pod_does_not_reach_it(world: World) -> None:
    """About what was sent to its own sender it is an ordinary packet; about anything else no policy is asked."""
    world.isolate(INGRESS)
    world.out(world.call(udp()))
    stranger = world.farther
    for source, target, port, reason in (
        # As the pod named it: on the wire there is no such packet.
        (world.pod, world.service, PORT, DropReason.INVALID_PACKET_DROPPED),
        (world.pod, stranger, TARGET, DropReason.POLICY_DENIED),
        (stranger, world.far, TARGET, DropReason.INVALID_PACKET_DROPPED),
        (world.pod, world.far, TARGET + 1, DropReason.INVALID_PACKET_DROPPED),
    ):
        quoted = bytes(world.ip(src=source, dst=target) / udp(dport=port))
        not_received(world, world.answer(unreachable(world, quoted), stranger), reason)


def test_an_error_shares_the_verdict_that_its_flow_has_now(world: World) -> None:
    world.isolate(INGRESS | EGRESS)
    rule = world.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, TARGET)
    quoted = bytes(world.out(world.call(udp())))
    world.into(world.answer(unreachable(world, quoted)))
    world.datapath.tables["nn_policy"].delete(rule)
    world.datapath.revision(2)
    not_received(world, world.answer(unreachable(world, quoted)), DropReason.POLICY_DENIED)


def test_quotes_with_options_are_translated_back(world: World) -> None:
    if world.ip is IP:
        packet: Packet = IP(src=world.pod, dst=world.service, options=[IPOption_NOP()] * 8) / udp(sport=9)
    else:
        packet = world.call(IPv6ExtHdrDestOpt() / udp(sport=9))
    sent = world.out(packet)
    inner = world.ip(bytes(world.into(world.answer(unreachable(world, bytes(sent)))).payload)[8:])
    assert ends(inner) == (world.pod, 9, world.service, PORT)


def test_quotes_that_end_too_early_or_lie_about_their_length(world: World) -> None:
    """They are about no flow; nothing is written behind the packet's end."""
    world.isolate(INGRESS)
    whole = bytes(world.out(world.call(udp())))
    header = 20 if world.ip is IP else 40
    for length in (0, 1, header - 1, header, header + 3):
        not_received(world, world.answer(unreachable(world, whole[:length])), DropReason.POLICY_DENIED)
    if world.ip is IP:
        longer = bytes([0x4F]) + whole[1:]  # says that it has 40 bytes of options
        not_received(world, world.answer(unreachable(world, longer)), DropReason.POLICY_DENIED)


def test_a_peer_that_may_not_call_cannot_turn_the_flow_around(world: World) -> None:
    """Its SYN, from the port that the pod has called, must not become the flow's first packet."""
    world.isolate(INGRESS)
    world.out(world.call(syn()))
    world.into(world.answer(syn_ack()))
    not_received(world, world.answer(syn(TARGET, SPORT)), DropReason.POLICY_DENIED)
    assert world.entry(world.far).flags & CtFlag.TRANSLATED
    assert ends(world.into(world.answer(ack(TARGET, SPORT))))[0] == world.service


def test_a_direct_packet_into_a_translated_connection_passes_as_what_it_is(world: World) -> None:
    """A pod that mixes its own two ways harms its own flow alone: policy has seen the same ends."""
    world.isolate(EGRESS)
    world.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, TARGET)
    world.out(world.call(syn()))
    assert world.out(world.ip(src=world.pod, dst=world.far) / ack(dport=TARGET)).dst == world.far
    assert world.entry(world.far).service_id == SERVICE_ID
    world.refused(world.ip(src=world.pod, dst=world.far) / ack(dport=PORT), DropReason.POLICY_DENIED, reset=True)


def test_odd_flags_open_nothing_that_policy_has_not_seen(world: World) -> None:
    world.isolate(EGRESS)
    for flags in ("SA", "A", "R", "F", "SF", "SR", "", "FSRPAU"):
        world.refused(world.call(ack(flags=flags)), DropReason.POLICY_DENIED)
    assert not list(world.datapath.tables["nn_ct"].items())


def test_truncated_answers_are_dropped(world: World) -> None:
    world.out(world.call(syn()))
    world.out(world.call(udp()))
    header = 20 if world.ip is IP else 40
    for layer, lengths in ((syn_ack(), (3, 13, 14, 17)), (udp(TARGET, SPORT), (3, 4, 7))):
        frame = bytes(Ether(src=POD_MAC) / world.answer(layer))
        for length in lengths:
            run = run_packet(world.datapath.loaded.programs["endpoint_ingress"], frame[: 14 + header + length])
            assert run.verdict == TC_SHOT
            assert -world.datapath.events()[-1].reason == DropReason.INVALID_PACKET_DROPPED


def test_fragments_of_a_pod_that_calls_itself(datapath: Datapath) -> None:
    world = World(datapath, 4)
    world.serve(world.service, SERVICE_ID, world.pod)
    big = world.call(udp() / Raw(bytes(3000)))
    big.id = 11
    pieces = [datapath.run("endpoint_egress", piece) for piece in fragment(big, fragsize=1400)]
    assert {run.verdict for run in pieces} == {TC_REDIRECT}
    packets = [Ether(run.packet)[IP] for run in pieces]
    assert {(piece.src, piece.dst) for piece in packets} == {(world.nobody, world.pod)}
    whole = IP(src=world.nobody, dst=world.pod, proto=17) / Raw(b"".join(bytes(piece.payload) for piece in packets))
    assert bytes(IP(bytes(whole))) == recomputed(IP(bytes(whole)))
    datapath.reset()


def test_fragments_that_overlap_the_ports(datapath: Datapath) -> None:
    """A first fragment with other ports under the same number is judged by itself; what was refused names nobody."""
    world = World(datapath, 6)
    world.isolate(EGRESS)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, TARGET)

    def piece(layer: Packet, offset: int, more: int) -> Packet:
        header = IPv6ExtHdrFragment(id=9, offset=offset, m=more, nh=17)
        return IPv6(src=world.pod, dst=world.far) / header / Raw(bytes(layer))

    later = piece(Raw(b"x" * 8), 2, 0)
    world.refused(piece(udp(dport=22) / Raw(b"x" * 8), 0, 1), DropReason.POLICY_DENIED)
    world.refused(later, DropReason.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND)
    assert datapath.sent(piece(udp(dport=TARGET) / Raw(b"x" * 8), 0, 1)) == TC_OK
    assert datapath.sent(later) == TC_OK
    world.refused(piece(udp(dport=22) / Raw(b"x" * 8), 0, 1), DropReason.POLICY_DENIED)
    datapath.reset()


def test_extension_headers_hide_no_service(datapath: Datapath) -> None:
    world = World(datapath, 6)
    many = IPv6ExtHdrDestOpt()
    for _ in range(5):
        many = many / IPv6ExtHdrDestOpt()
    assert world.out(world.call(IPv6ExtHdrDestOpt() / udp(sport=3))).dst == world.far
    world.refused(world.call(many / IPv6ExtHdrDestOpt() / udp()), DropReason.INVALID_IPV6_EXTENSION_HEADER)
    # The destination is what the header says, whatever a routing header promises.
    world.isolate(EGRESS)
    datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, TARGET)
    routed = world.call(IPv6ExtHdrRouting(addresses=[world.farther], segleft=1) / UDP(sport=4, dport=PORT, chksum=1))
    assert Ether(datapath.run("endpoint_egress", routed).packet)[IPv6].dst == world.far
    datapath.reset()


class SameNode:
    """The client's and the server's pods on one node. Test runs have one interface: it is the sender's, or, where a
    packet has crossed the bridge, the receiver's."""

    def __init__(self, world: World, bridged: bool) -> None:
        self.world, self.bridged = world, bridged
        self.addresses = (world.pod, world.near)
        world.serve(world.service, SERVICE_ID, world.near)

    def _at(self, interface: str) -> None:
        for number, (address, identity) in enumerate(zip(self.addresses, (CLIENT, SERVER), strict=True), 1):
            flags = (INGRESS | EGRESS) | (abi.EndpointFlag.NO_REDIRECT if self.bridged else 0)
            mac = POD_MAC if address == interface else "02:00:00:00:00:07"
            ifindex = TEST_IFINDEX if address == interface else OTHER_IFINDEX
            entry = abi.always(abi.EndpointEntry(ifindex, identity, number, flags, mac))
            self.world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
            self.world.datapath.identity(address, identity)

    def send(self, packet: Packet) -> bytes | None:
        """From its source to the other pod: what arrives there, None if nothing does."""
        sender = packet.src
        receiver = next(address for address in self.addresses if address != sender)
        self._at(sender)
        run = self._run("endpoint_egress", packet)
        if self.bridged and run.verdict == TC_OK:
            self._at(receiver)
            run = self._run("endpoint_ingress", Ether(run.packet)[self.world.ip])
            assert run.verdict in (TC_OK, TC_SHOT)
        else:
            assert run.verdict in (TC_REDIRECT, TC_SHOT)
        return None if run.verdict == TC_SHOT else bytes(Ether(run.packet)[self.world.ip])

    def _run(self, program: str, packet: Packet) -> PacketRun:
        return self.world.datapath.run(program, packet)


def conversation(world: World, send: Callable[[Packet], bytes | None]) -> Iterator[bytes | None]:
    """Calls, answers, errors, and rules that change under way; the same with and without the bridge."""
    datapath, near = world.datapath, world.near

    def told(layer: Packet) -> Packet:
        return world.ip(src=near, dst=world.pod) / layer

    yield send(world.call(syn()))  # nothing is allowed
    datapath.allow(CLIENT, SERVER, Direction.EGRESS, 0, 0)
    yield send(world.call(syn()))  # not into the other one
    into = datapath.allow(SERVER, CLIENT, Direction.INGRESS, 6, TARGET)
    yield send(world.call(syn()))
    yield send(told(syn_ack()))
    yield send(world.call(ack() / Raw(b"question")))
    yield send(told(syn(TARGET, SPORT)))  # the server may not call
    yield send(told(ack(TARGET, SPORT) / Raw(b"answer")))
    yield send(world.call(udp()))
    datapath.allow(SERVER, CLIENT, Direction.INGRESS, 17, TARGET)
    datagram = send(world.call(udp()))
    yield datagram
    yield send(told(unreachable(world, datagram or b"")))
    yield send(told(unreachable(world, bytes(world.ip(src=world.pod, dst=near) / udp(dport=9)))))
    yield send(told(udp(TARGET, SPORT) / Raw(b"late")))
    datapath.tables["nn_policy"].delete(into)
    datapath.revision(2)
    yield send(world.call(ack() / Raw(b"too late")))
    yield send(told(ack(TARGET, SPORT) / Raw(b"also")))
    yield send(told(udp(TARGET, SPORT) / Raw(b"this is not")))


def test_the_bridge_and_the_shortcut_decide_and_write_the_same(world: World) -> None:
    arrived = []
    for bridged in (False, True):
        world.datapath.reset()
        node = SameNode(world, bridged)
        arrived.append(list(conversation(world, node.send)))
    direct, bridged_ = arrived
    assert [packet is not None for packet in direct] == [bool(int(bit)) for bit in "001110101101001"]
    assert direct == bridged_
    for packet in filter(None, direct):
        assert packet == recomputed(world.ip(packet))


def test_the_error_of_a_pod_on_the_same_node_names_the_service(world: World) -> None:
    node = SameNode(world, bridged=False)
    for direction, subject in ((Direction.EGRESS, CLIENT), (Direction.INGRESS, SERVER)):
        world.datapath.allow(subject, SERVER if subject == CLIENT else CLIENT, direction)
    datagram = node.send(world.call(udp()))
    assert datagram
    world.datapath.events()
    error = node.send(world.ip(src=world.near, dst=world.pod) / unreachable(world, datagram))
    assert error
    assert ends(world.ip(bytes(world.ip(error).payload)[8:])) == (world.pod, SPORT, world.service, PORT)
    assert world.datapath.events() == []  # related: its flow was told already
