"""Services translated packet by packet: what leaves the pod, what comes back, and every checksum counted anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6NIQueryNOOP,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtFlag, CtStatus, DropReason, EventType
from nodenet.bpf.packet_run import run_packet
from nodenet.model import Direction

from .conftest import OTHER_IFINDEX, POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

CLIENT, SERVER = 1000, 2000
SERVICE_ID, OTHER_SERVICE_ID = 41, 42
INGRESS, EGRESS = abi.EndpointFlag.ISOLATED_INGRESS, abi.EndpointFlag.ISOLATED_EGRESS
UNKNOWN = DropReason.UNKNOWN_CONNECTION_TRACKING_STATE
PORT, TARGET, SPORT = 80, 8080, 40000
PROTOCOLS = {6: TCP, 17: UDP}


class World:
    """A pod, a Service of TCP and UDP port 80, and where its backends are, in one family."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath = datapath
        self.ip = IP if version == 4 else IPv6
        self.pod, self.near, self.far, self.farther, self.service, self.other, self.nobody = (
            ("10.0.1.1", "10.0.1.9", "10.0.2.2", "10.0.2.3", "10.96.0.10", "10.96.0.11", "169.254.42.1")
            if version == 4
            else ("fd00:1::1", "fd00:1::9", "fd00:2::2", "fd00:2::3", "fd00:96::10", "fd00:96::11", "100::1")
        )
        self.isolate(0)
        for backend in (self.far, self.farther):
            datapath.identity(backend, SERVER)
        self.serve(self.service, SERVICE_ID, self.far)

    def isolate(self, flags: int) -> None:
        self.datapath.endpoint(self.pod, CLIENT, number=1, flags=flags)

    def serve(self, service: str, number: int, *backends: str, target: int = TARGET) -> None:
        """Both protocols of the port, with these backends in their slots. Earlier ones are draining until `leave`."""
        tables, address = self.datapath.tables, ip_address(service)
        tables["nn_service_addr"].update(abi.AddressKey(address), abi.U32(abi.AddressFlag.REFUSE_UNSERVED))
        tables["nn_revnat"].update(abi.U32(number), abi.AddressPort(address, PORT, 6))
        for protocol in PROTOCOLS:
            for slot, backend in enumerate(backends, 1):
                key = abi.U32(self.backend_id(backend, protocol))
                tables["nn_backend"].update(key, abi.AddressPort(ip_address(backend), target, protocol))
                if protocol == 17:
                    member = abi.AddressPort(ip_address(backend), target, protocol)
                    tables["nn_member"].update(abi.MemberKey(number, key.value), member)
                entry = abi.FrontendEntry(key.value, number, 0)
                tables["nn_frontend"].update(abi.FrontendKey(address, PORT, protocol, slot), entry)
            master = abi.FrontendEntry(0, number, len(backends))
            tables["nn_frontend"].update(abi.FrontendKey(address, PORT, protocol, 0), master)

    def backend_id(self, backend: str, protocol: int) -> int:
        return int(ip_address(backend)) % 1000 * 100 + protocol

    def leave(self, backend: str, number: int = SERVICE_ID) -> None:
        """The backend is no longer this Service's; it exists, as another Service has it."""
        self.datapath.tables["nn_member"].delete(abi.MemberKey(number, self.backend_id(backend, 17)))

    def forget(self, backend: str) -> None:
        self.leave(backend)
        for protocol in PROTOCOLS:
            self.datapath.tables["nn_backend"].delete(abi.U32(self.backend_id(backend, protocol)))

    def call(self, layer: Packet, service: str | None = None) -> Packet:
        return self.ip(src=self.pod, dst=service or self.service) / layer

    def backend_of(self, layer: Packet) -> str:
        """The backend of what the pod sends to the Service."""
        return str(Ether(self.datapath.run("endpoint_egress", self.call(layer)).packet)[self.ip].dst)

    def answer(self, layer: Packet, backend: str | None = None) -> Packet:
        return self.ip(src=backend or self.far, dst=self.pod) / layer

    def out(self, packet: Packet, verdict: int = TC_OK) -> Packet:
        """What becomes of a packet that the pod sends; its checksums are right."""
        return self._through("endpoint_egress", packet, verdict)

    def into(self, packet: Packet, verdict: int = TC_OK) -> Packet:
        """What becomes of a packet that the pod is to receive."""
        return self._through("endpoint_ingress", packet, verdict)

    def _through(self, program: str, packet: Packet, verdict: int) -> Packet:
        run = self.datapath.run(program, packet)
        assert run.verdict == verdict
        result = Ether(run.packet)[self.ip]
        if verdict != TC_SHOT:
            assert bytes(result) == recomputed(result)
        return result

    def refused(self, packet: Packet, reason: DropReason, *, reset: bool = False, answered: bool = False) -> abi.Event:
        """The event of a packet that the pod may not send; whether its connection is `reset`, or its Service refuses it
        with an answer."""
        self.datapath.events()
        run = self.datapath.run("endpoint_egress", packet)
        assert run.verdict == (TC_REDIRECT if reset or answered else TC_SHOT)
        assert not reset or Ether(run.packet)[TCP].flags == "R"
        if answered:
            assert run.packet[:12] == bytes.fromhex("0200000000010200000000bb")
            check_refusal(self.ip(bytes(packet)), Ether(run.packet)[self.ip])
        event = self.datapath.events()[-1]
        assert (event.type, -event.reason) == (EventType.DROP, reason)
        return event

    def entry(self, remote: str, pod_port: int = SPORT, remote_port: int = TARGET, protocol: int = 6) -> abi.CtEntry:
        key = abi.CtKey(ip_address(self.pod), ip_address(remote), pod_port, remote_port, protocol)
        found = self.datapath.tables["nn_ct"].get(key)
        assert isinstance(found, abi.CtEntry)
        return found


def recomputed(packet: Packet) -> bytes:
    """The same packet with checksums made by scapy; a later fragment has only its header's."""
    copy = packet.copy()
    for layer in (IP, TCP, UDP, ICMP):
        if copy.haslayer(layer) and not (layer is UDP and copy[UDP].chksum == 0):
            del copy[layer].chksum
    for name in ("ICMPv6DestUnreach", "ICMPv6PacketTooBig"):
        if copy.haslayer(name):
            del copy[name].cksum
    return bytes(copy)


def check_refusal(sent: Packet, answer: Packet) -> None:
    """`answer` is what a host answers whose port is closed: a reset, or ICMP with the packet's header and 8 bytes."""
    assert (answer.src, answer.dst) == (sent.dst, sent.src)
    assert bytes(answer) == recomputed(answer)
    if sent.haslayer(TCP):
        segment = sent[TCP]
        flags, seq, acked = ("R", segment.ack, 0) if segment.flags.A else ("RA", 0, segment.seq + 1)
        reset = answer[TCP]
        assert (reset.sport, reset.dport) == (segment.dport, segment.sport)
        assert (str(reset.flags), reset.seq, reset.ack) == (flags, seq, acked)
        return
    if isinstance(answer, IP):
        assert (answer[ICMP].type, answer[ICMP].code) == (3, 3)
        assert bytes(answer[ICMP])[8:] == bytes(sent)[:28]
    else:
        assert (answer[ICMPv6DestUnreach].type, answer[ICMPv6DestUnreach].code) == (1, 4)
        assert bytes(answer[ICMPv6DestUnreach])[8:] == bytes(sent)[:48]


def ends(packet: Packet) -> tuple[str, int, str, int]:
    layer = packet[TCP] if packet.haslayer(TCP) else packet[UDP]
    return packet.src, layer.sport, packet.dst, layer.dport


def monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000_000


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath) -> Iterator[World]:
    yield World(datapath, request.param)
    datapath.reset()


@pytest.fixture(params=PROTOCOLS.values(), ids=["tcp", "udp"])
def layer(request: pytest.FixtureRequest) -> type[Packet]:
    kind: type[Packet] = request.param
    return kind


@pytest.mark.parametrize("size", [0, 1, 700])
def test_there_and_back(world: World, layer: type[Packet], size: int) -> None:
    data = (bytes(range(256)) * 3)[:size]
    sent = world.out(world.call(layer(sport=SPORT, dport=PORT) / Raw(data)))
    assert ends(sent) == (world.pod, SPORT, world.far, TARGET)
    assert bytes(sent).endswith(data)
    back = layer(sport=TARGET, dport=SPORT, **({"flags": "SA"} if layer is TCP else {}))
    received = world.into(world.answer(back / Raw(data)))
    assert ends(received) == (world.service, PORT, world.pod, SPORT)


def test_every_checksum_comes_out_right(world: World, layer: type[Packet]) -> None:
    """Sums that end as 0 are the hard ones: UDP writes them as 0xffff (RFC 768)."""
    for number in range(0, 65536, 257):
        world.out(world.call(layer(sport=SPORT, dport=PORT) / Raw(number.to_bytes(2, "big"))))
    world.into(world.answer(layer(sport=TARGET, dport=SPORT) / Raw(b"x")) if layer is UDP else world.answer(syn_ack()))


def syn(sport: int = SPORT, dport: int = PORT) -> Packet:
    return TCP(sport=sport, dport=dport, flags="S")


def ack(sport: int = SPORT, dport: int = PORT, flags: str = "A") -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags)


def syn_ack(sport: int = TARGET, dport: int = SPORT) -> Packet:
    return TCP(sport=sport, dport=dport, flags="SA")


def udp(sport: int = SPORT, dport: int = PORT) -> Packet:
    return UDP(sport=sport, dport=dport)


def test_a_udp_checksum_that_comes_out_as_zero_is_written_as_ones(datapath: Datapath) -> None:
    world = World(datapath, 4)
    plain = world.out(world.call(udp() / Raw(b"\0\0")))
    wanted = plain[UDP].chksum
    # The payload that makes the translated packet's sum 0.
    packet = world.call(udp() / Raw(wanted.to_bytes(2, "big")))
    assert world.out(packet)[UDP].chksum == 0xFFFF
    datapath.reset()


def test_no_udp_checksum_stays_none(datapath: Datapath) -> None:
    world = World(datapath, 4)
    none = UDP(sport=SPORT, dport=PORT, chksum=0)
    sent = world.out(world.call(none / Raw(b"data")))
    assert (ends(sent)[2:], sent[UDP].chksum) == ((world.far, TARGET), 0)
    back = world.into(world.answer(UDP(sport=TARGET, dport=SPORT, chksum=0) / Raw(b"data")))
    assert (ends(back)[:2], back[UDP].chksum) == ((world.service, PORT), 0)
    datapath.reset()


def test_events_name_the_service_and_the_pods_behind_it(world: World) -> None:
    world.out(world.call(syn()))
    (new,) = world.datapath.events()
    assert (new.type, new.ct_status, new.service_id) == (EventType.POLICY_VERDICT, CtStatus.NEW, SERVICE_ID)
    assert (str(new.daddr), new.dport, new.dst_identity) == (world.far, TARGET, SERVER)
    world.into(world.answer(syn_ack()))
    (first_reply,) = world.datapath.events()
    assert (first_reply.type, first_reply.is_reply, first_reply.service_id) == (EventType.TRACE, 1, SERVICE_ID)


def test_policy_acts_behind_the_translation(world: World) -> None:
    world.isolate(EGRESS)
    world.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, PORT)
    event = world.refused(world.call(syn()), DropReason.POLICY_DENIED)
    assert (str(event.daddr), event.dport, event.service_id) == (world.far, TARGET, SERVICE_ID)
    rule = world.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, TARGET)
    world.out(world.call(syn()))
    world.into(world.answer(syn_ack()))
    world.datapath.tables["nn_policy"].delete(rule)
    world.datapath.revision(2)
    world.refused(world.call(ack()), DropReason.POLICY_DENIED)
    world.into(world.answer(ack(TARGET, SPORT)), TC_SHOT)


def test_the_backend_is_chosen_once_per_flow(world: World, layer: type[Packet]) -> None:
    world.serve(world.service, SERVICE_ID, world.far, world.farther)
    chosen = set()
    for sport in range(SPORT, SPORT + 40):
        first = world.out(world.call(layer(sport=sport, dport=PORT))).dst
        flags = {"flags": "A"} if layer is TCP else {}
        again = {world.out(world.call(layer(sport=sport, dport=PORT, **flags))).dst for _ in range(5)}
        assert again == {first}
        chosen.add(first)
    assert chosen == {world.far, world.farther}


def test_a_syn_again_goes_to_the_same_backend(world: World) -> None:
    world.serve(world.service, SERVICE_ID, world.far, world.farther)
    first = world.out(world.call(syn())).dst
    assert {world.out(world.call(syn())).dst for _ in range(12)} == {first}


def test_a_new_connection_from_an_old_port_is_given_a_backend_anew(world: World) -> None:
    for backends in ((world.far,), (world.farther,), (world.far,)):
        world.serve(world.service, SERVICE_ID, *backends)
        (backend,) = backends
        assert world.out(world.call(syn())).dst == backend
        world.out(world.call(ack()))
        world.out(world.call(ack(flags="FA")))
        world.into(world.answer(ack(TARGET, SPORT, "FA"), backend))


def test_a_connection_outlives_its_backends_place_in_the_service(world: World) -> None:
    world.out(world.call(syn()))
    world.out(world.call(ack()))
    world.serve(world.service, SERVICE_ID, world.farther)
    world.forget(world.far)
    assert world.out(world.call(ack())).dst == world.far
    assert ends(world.into(world.answer(ack(TARGET, SPORT))))[0] == world.service


def test_a_syn_whose_backend_is_gone_tries_another(world: World) -> None:
    world.out(world.call(syn()))
    world.serve(world.service, SERVICE_ID, world.farther)
    world.forget(world.far)
    assert world.out(world.call(syn())).dst == world.farther


def test_datagrams_leave_a_backend_that_is_gone(world: World) -> None:
    assert world.out(world.call(udp())).dst == world.far
    world.serve(world.service, SERVICE_ID, world.farther)
    assert world.out(world.call(udp())).dst == world.far  # there still, though not chosen any more
    world.forget(world.far)
    assert world.out(world.call(udp())).dst == world.farther
    assert ends(world.into(world.answer(udp(TARGET, SPORT), world.farther)))[0] == world.service


def test_datagrams_leave_a_backend_that_left_their_service_alone(world: World) -> None:
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    for service in (world.service, world.other):
        assert world.out(world.call(udp(), service)).dst == world.far
    world.serve(world.service, SERVICE_ID, world.farther)
    world.leave(world.far)
    assert world.out(world.call(udp())).dst == world.farther
    assert world.out(world.call(udp(), world.other)).dst == world.far


def test_datagrams_to_a_service_that_lost_its_last_backend_are_refused(world: World) -> None:
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    world.out(world.call(udp()))
    world.serve(world.service, SERVICE_ID)
    world.leave(world.far)
    world.refused(world.call(udp()), DropReason.SERVICE_BACKEND_NOT_FOUND, answered=True)


def test_a_syn_again_leaves_a_backend_that_left_its_service(world: World) -> None:
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    assert world.out(world.call(syn())).dst == world.far
    world.serve(world.service, SERVICE_ID, world.farther)
    assert world.out(world.call(syn())).dst == world.farther
    world.out(world.call(ack()))
    world.serve(world.service, SERVICE_ID, world.far)
    assert world.out(world.call(ack())).dst == world.farther


def test_a_syn_again_keeps_its_backend_when_the_service_grows(world: World) -> None:
    first = {sport: world.out(world.call(syn(sport))).dst for sport in range(SPORT, SPORT + 20)}
    world.serve(world.service, SERVICE_ID, world.far, world.farther, world.near)
    assert {sport: world.out(world.call(syn(sport))).dst for sport in first} == first


def test_a_backends_number_given_anew_is_not_the_backend(world: World) -> None:
    world.out(world.call(udp()))
    key, other = abi.U32(world.backend_id(world.far, 17)), abi.AddressPort(ip_address(world.farther), TARGET, 17)
    world.datapath.tables["nn_backend"].update(key, other)
    world.datapath.tables["nn_member"].update(abi.MemberKey(SERVICE_ID, key.value), other)
    assert world.out(world.call(udp())).dst == world.farther


def test_datagrams_after_a_long_pause_are_a_new_flow(world: World) -> None:
    world.out(world.call(udp()))
    world.serve(world.service, SERVICE_ID, world.farther)
    table = world.datapath.tables["nn_nat"]
    ((key, entry),) = [item for item in table.items() if not item[0].reply]
    table.update(key, entry._replace(last_seen=monotonic() - 170))
    assert world.out(world.call(udp())).dst == world.far
    assert abs(table.get(key).last_seen - monotonic()) <= 1
    table.update(key, entry._replace(last_seen=monotonic() - 190))
    assert world.out(world.call(udp())).dst == world.farther


def test_the_flow_of_the_addresss_last_owner_is_not_inherited(world: World) -> None:
    world.out(world.call(udp()))
    world.serve(world.service, SERVICE_ID, world.farther)
    world.datapath.endpoint(world.pod, CLIENT, number=1)
    entry = world.datapath.tables["nn_endpoint"].get(abi.AddressKey(ip_address(world.pod)))
    assert isinstance(entry, abi.EndpointVersions)
    next_owner = entry._replace(endpoint_id=9)
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(world.pod)), next_owner)
    assert world.out(world.call(udp())).dst == world.farther


def test_a_connection_that_is_not_known_any_more_is_given_its_backend(world: World, layer: type[Packet]) -> None:
    """After the map pushed it out. Where the Service has changed meanwhile, it may be another one, which resets it."""
    backends = [f"{world.far}{number}" for number in range(5)]
    world.serve(world.service, SERVICE_ID, *backends)
    flags = {"flags": "A"} if layer is TCP else {}
    first = [world.out(world.call(layer(sport=sport, dport=PORT))).dst for sport in range(SPORT, SPORT + 50)]
    for name in ("nn_nat", "nn_ct"):
        for key, _ in list(world.datapath.tables[name].items()):
            world.datapath.tables[name].delete(key)
    again = [world.out(world.call(layer(sport=sport, dport=PORT, **flags))).dst for sport in range(SPORT, SPORT + 50)]
    assert again == first
    assert set(first) == set(backends)


def test_flows_are_spread_evenly(world: World) -> None:
    """Whatever the ports have in common: counted up, as a kernel chooses them, or by four."""
    backends = [f"{world.far}{number}" for number in range(8)]
    world.serve(world.service, SERVICE_ID, *backends)
    for step in (1, 2, 4, 256):
        ports = [(1024 + number * step) % 65536 for number in range(400)]
        found = Counter(world.backend_of(udp(port)) for port in dict.fromkeys(ports))
        expected = len(set(ports)) / len(backends)
        # Chance alone: a deviation of 5 standard deviations has a probability below 1 in a million.
        assert all(abs(found[backend] - expected) < 5 * expected**0.5 for backend in backends)


def test_closing_is_noted_as_with_any_flow(world: World) -> None:
    world.out(world.call(syn()))
    assert world.entry(world.far).flags == CtFlag.TRANSLATED
    world.into(world.answer(syn_ack()))
    world.out(world.call(ack(flags="FA")))
    world.into(world.answer(ack(TARGET, SPORT, "FA")))
    entry = world.entry(world.far)
    assert entry.flags == CtFlag.TRANSLATED | CtFlag.SEEN_REPLY | CtFlag.FIN_FORWARD | CtFlag.FIN_REPLY
    assert entry.service_id == SERVICE_ID


def test_an_unserved_port_and_what_has_no_ports(world: World) -> None:
    ping = ICMP() if world.ip is IP else ICMPv6EchoRequest()
    for layer in (syn(dport=81), udp(dport=81), udp(dport=81) / Raw(bytes(900)), ack(dport=81), ping):
        world.refused(world.call(layer), DropReason.IS_A_CLUSTERIP, answered=True)
    # A reset is not answered, nor is what is no echo request.
    world.refused(world.call(ack(dport=81, flags="R")), DropReason.IS_A_CLUSTERIP)
    world.refused(world.call(ICMP(type=13) if world.ip is IP else ICMPv6NIQueryNOOP()), DropReason.IS_A_CLUSTERIP)


def test_a_service_without_backends(world: World, layer: type[Packet]) -> None:
    world.serve(world.service, SERVICE_ID)
    call = world.call(layer(sport=SPORT, dport=PORT))
    event = world.refused(call, DropReason.SERVICE_BACKEND_NOT_FOUND, answered=True)
    assert event.service_id == SERVICE_ID
    # Other nodes have backends, and the traffic policy is Local.
    for protocol in PROTOCOLS:
        master = abi.FrontendEntry(0, SERVICE_ID, 0, abi.FrontendFlag.ONLY_ELSEWHERE)
        key = abi.FrontendKey(ip_address(world.service), PORT, protocol, 0)
        world.datapath.tables["nn_frontend"].update(key, master)
    world.refused(call, DropReason.SERVICE_BACKEND_NOT_FOUND)


def test_a_connection_outlives_its_service(world: World) -> None:
    """As with conntrack under kube-proxy: the flow holds the addresses."""
    world.out(world.call(syn()))
    tables = world.datapath.tables
    for name in ("nn_revnat", "nn_frontend", "nn_service_addr"):
        for key, _ in list(tables[name].items()):
            tables[name].delete(key)
    assert ends(world.into(world.answer(syn_ack()))) == (world.service, PORT, world.pod, SPORT)
    assert ends(world.out(world.call(ack()))) == (world.pod, SPORT, world.far, TARGET)
    # Only this connection: others go to the address as it is.
    assert world.out(world.call(syn())).dst == world.service
    assert world.out(world.call(ack(SPORT + 1))).dst == world.service


def test_answers_of_flows_that_share_their_ends_get_the_service_that_conntrack_names(world: World) -> None:
    """An upgrade may bring two such flows; the half for answers is the other one's."""
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    world.out(world.call(syn()))
    tables = world.datapath.tables
    ((key, half),) = [item for item in tables["nn_nat"].items() if item[0].reply]
    tables["nn_nat"].update(key, half._replace(saddr=ip_address(world.other), service_id=OTHER_SERVICE_ID))
    assert ends(world.into(world.answer(syn_ack()))) == (world.service, PORT, world.pod, SPORT)


def test_an_answer_of_an_evicted_flow_is_translated_while_its_service_exists(world: World) -> None:
    world.out(world.call(syn()))
    tables = world.datapath.tables
    for key, _ in list(tables["nn_nat"].items()):
        tables["nn_nat"].delete(key)
    assert ends(world.into(world.answer(syn_ack()))) == (world.service, PORT, world.pod, SPORT)
    tables["nn_revnat"].delete(abi.U32(SERVICE_ID))
    world.datapath.events()
    world.into(world.answer(syn_ack()), TC_SHOT)
    assert -world.datapath.events()[-1].reason == DropReason.SERVICE_BACKEND_NOT_FOUND


def test_answers_of_a_direct_flow_stay_as_they_are(world: World, layer: type[Packet]) -> None:
    world.out(world.ip(src=world.pod, dst=world.far) / layer(sport=SPORT, dport=TARGET))
    back = layer(sport=TARGET, dport=SPORT, **({"flags": "SA"} if layer is TCP else {}))
    assert ends(world.into(world.answer(back)))[0] == world.far


def test_two_connections_between_the_same_ends_are_not_mixed(world: World) -> None:
    """The later one gets another source port: both go on, and each answer finds its connection."""
    direct = world.ip(src=world.pod, dst=world.far) / syn(dport=TARGET)
    world.out(direct)
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    ports = [SPORT]
    for service in (world.service, world.other):
        sent = ends(world.out(world.call(syn(), service)))
        assert (sent[0], *sent[2:]) == (world.pod, world.far, TARGET)
        assert sent[1] not in ports
        ports.append(sent[1])
        # A SYN that is sent again, and what follows, keep the port.
        assert ends(world.out(world.call(syn(), service))) == sent
        assert ends(world.into(world.answer(syn_ack(dport=sent[1])))) == (service, PORT, world.pod, SPORT)
        assert ends(world.out(world.call(ack(), service))) == sent
    assert ends(world.into(world.answer(syn_ack())))[0] == world.far


def test_a_direct_connection_with_the_ends_of_a_translated_one_is_refused(world: World) -> None:
    """It is not translated, so it cannot have another port. When the first one closes, it is possible."""
    world.out(world.call(syn()))
    direct = world.ip(src=world.pod, dst=world.far) / syn(dport=TARGET)
    world.refused(direct, UNKNOWN)
    world.out(world.call(ack(flags="FA")))
    world.out(direct)


def test_datagrams_to_the_backend_itself_are_answered_to_whoever_sent_last(world: World) -> None:
    """A direct one cannot leave from another port: it is not translated."""
    direct = world.ip(src=world.pod, dst=world.far) / udp(dport=TARGET)
    for packet, name in (
        (world.call(udp()), world.service),
        (direct, world.far),
        (world.call(udp()), world.service),
    ):
        world.out(packet)
        assert ends(world.into(world.answer(udp(TARGET, SPORT))))[0] == name


def test_same_node_both_ways(world: World, layer: type[Packet]) -> None:
    world.datapath.endpoint(world.near, SERVER, number=2, ifindex=OTHER_IFINDEX, flags=INGRESS)
    world.serve(world.service, SERVICE_ID, world.near)
    packet = world.call(layer(sport=SPORT, dport=PORT))
    world.refused(packet, DropReason.POLICY_DENIED)
    world.datapath.allow(SERVER, CLIENT, Direction.INGRESS, 0, 0)
    world.datapath.events()
    sent = world.out(packet, TC_REDIRECT)
    assert ends(sent) == (world.pod, SPORT, world.near, TARGET)
    assert {event.service_id for event in world.datapath.events()} == {SERVICE_ID}
    # The answer, from the other pod's interface: the two change places.
    world.datapath.endpoint(world.pod, CLIENT, number=1, ifindex=OTHER_IFINDEX)
    entry = abi.always(abi.EndpointEntry(1, SERVER, 2, INGRESS, "02:00:00:00:00:01"))
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(world.near)), entry)
    back = layer(sport=TARGET, dport=SPORT, **({"flags": "SA"} if layer is TCP else {}))
    assert ends(world.out(world.answer(back, world.near), TC_REDIRECT)) == (world.service, PORT, world.pod, SPORT)


@pytest.mark.parametrize("bridged", ["source", "target"])
def test_a_bridged_pods_packets_cross_the_bridge(world: World, bridged: str) -> None:
    flags = abi.EndpointFlag.NO_REDIRECT
    world.datapath.endpoint(world.near, SERVER, number=2, ifindex=OTHER_IFINDEX)
    direct = world.ip(src=world.pod, dst=world.near) / syn()
    world.out(direct, TC_REDIRECT)
    world.isolate(flags if bridged == "source" else 0)
    near = {"number": 2, "ifindex": OTHER_IFINDEX, "flags": flags if bridged == "target" else 0}
    world.datapath.endpoint(world.near, SERVER, **near)
    world.out(direct, TC_OK)
    world.serve(world.service, SERVICE_ID, world.near)
    assert world.out(world.call(syn(sport=5)), TC_OK).dst == world.near


def test_a_pod_reaches_itself_through_its_service(world: World, layer: type[Packet]) -> None:
    world.isolate(INGRESS | EGRESS)  # of which a pod is exempt towards itself
    world.serve(world.service, SERVICE_ID, world.pod)
    called = world.out(world.call(layer(sport=SPORT, dport=PORT) / Raw(b"ask")), TC_REDIRECT)
    assert ends(called) == (world.nobody, SPORT, world.pod, TARGET)
    (event,) = world.datapath.events()
    assert (event.type, event.service_id, event.dst_identity) == (EventType.TRACE, SERVICE_ID, CLIENT)
    back = layer(sport=TARGET, dport=SPORT, **({"flags": "SA"} if layer is TCP else {})) / Raw(b"told")
    answered = world.out(world.ip(src=world.pod, dst=world.nobody) / back, TC_REDIRECT)
    assert ends(answered) == (world.service, PORT, world.pod, SPORT)
    more = layer(sport=SPORT, dport=PORT, **({"flags": "A"} if layer is TCP else {}))
    assert ends(world.out(world.call(more), TC_REDIRECT)) == (world.nobody, SPORT, world.pod, TARGET)
    assert world.datapath.events() == []


def test_nobody_is_nobody(world: World) -> None:
    world.refused(world.ip(src=world.pod, dst=world.nobody) / syn(), UNKNOWN)
    world.datapath.events()
    world.into(world.ip(src=world.nobody, dst=world.pod) / syn(), TC_SHOT)
    assert -world.datapath.events()[-1].reason == DropReason.INVALID_SOURCE_IP


def test_ipv4_fragments(datapath: Datapath) -> None:
    world = World(datapath, 4)
    big = world.call(udp() / Raw(bytes(range(250)) * 12))
    big.id = 7
    first, *rest = fragment(big, fragsize=1400)
    pieces = [world.datapath.run("endpoint_egress", piece).packet for piece in (first, *rest)]
    assert ends(together(pieces)) == (world.pod, SPORT, world.far, TARGET)
    back = world.answer(udp(TARGET, SPORT) / Raw(bytes(range(250)) * 12))
    back.id = 8
    pieces = [world.datapath.run("endpoint_ingress", piece).packet for piece in fragment(back, fragsize=1400)]
    assert ends(together(pieces)) == (world.service, PORT, world.pod, SPORT)
    assert len(rest) == 2
    world.isolate(EGRESS)
    other = world.call(udp(sport=9) / Raw(bytes(3000)))
    other.id = 9
    for piece in fragment(other, fragsize=1400):
        world.refused(piece, DropReason.POLICY_DENIED)
    datapath.reset()


def together(pieces: list[bytes]) -> Packet:
    """The datagram of these fragments; the header checksum of each is right, and so is the whole one's."""
    packets = [Ether(piece)[IP] for piece in pieces]
    for packet in packets:
        copy = packet.copy()
        del copy.chksum
        assert bytes(copy) == bytes(packet)
    ((source, target),) = {(packet.src, packet.dst) for packet in packets}
    joined = b"".join(bytes(packet.payload) for packet in packets)
    whole = IP(bytes(IP(src=source, dst=target, proto=17) / Raw(joined)))
    assert bytes(whole) == recomputed(whole)
    return whole


def test_ipv6_fragments_and_extension_headers(datapath: Datapath) -> None:
    world = World(datapath, 6)
    data = bytes(range(250)) * 8
    # Made whole first: the checksum of the first fragment covers what the second one carries.
    whole = IPv6(bytes(world.call(udp() / Raw(data))))
    payload = bytes(whole[UDP])
    first = IPv6(src=world.pod, dst=world.service) / IPv6ExtHdrFragment(id=9, m=1, nh=17) / Raw(payload[:1200])
    later = IPv6(src=world.pod, dst=world.service) / IPv6ExtHdrFragment(id=9, offset=150, nh=17) / Raw(payload[1200:])
    pieces = [Ether(world.datapath.run("endpoint_egress", piece).packet) for piece in (first, later)]
    assert {piece[IPv6].dst for piece in pieces} == {world.far}
    joined = b"".join(bytes(piece[IPv6ExtHdrFragment].payload) for piece in pieces)
    put = IPv6(bytes(IPv6(src=world.pod, dst=world.far, nh=17) / Raw(joined)))
    assert ends(put) == (world.pod, SPORT, world.far, TARGET)
    assert bytes(put) == recomputed(put)
    options = world.out(world.call(IPv6ExtHdrDestOpt() / udp(sport=6)))
    assert ends(options) == (world.pod, 6, world.far, TARGET)
    datapath.reset()


def test_icmp_errors_quote_the_packet_that_the_pod_sent(world: World, layer: type[Packet]) -> None:
    sent = world.out(world.call(layer(sport=SPORT, dport=PORT) / Raw(b"x" * 64)))
    for quoted in (bytes(sent), bytes(sent)[: 28 if world.ip is IP else 48]):
        error = world.into(world.ip(src="10.9.9.9" if world.ip is IP else "fd00:9::9", dst=world.pod) / told(quoted))
        inner = world.ip(bytes(error.payload)[8:])
        assert (inner.src, inner.dst) == (world.pod, world.service)
        ports = bytes(inner.payload)[:4]
        assert (int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")) == (SPORT, PORT)
        if world.ip is IP:
            header = inner.copy()
            del header.chksum
            assert bytes(header)[:20] == bytes(inner)[:20]


def told(quoted: bytes) -> Packet:
    if quoted[0] >> 4 == 4:
        return ICMP(type=3, code=4) / Raw(quoted)
    return ICMPv6PacketTooBig(mtu=1280) / Raw(quoted)


def test_icmp_errors_about_direct_flows_are_left_alone(world: World) -> None:
    direct = world.ip(src=world.pod, dst=world.far) / udp(dport=TARGET)
    sent = world.out(direct)
    quoted = bytes(sent)
    error = ICMP(type=3, code=3) / Raw(quoted) if world.ip is IP else ICMPv6DestUnreach(code=4) / Raw(quoted)
    received = world.into(world.ip(src=world.far, dst=world.pod) / error)
    assert bytes(received.payload)[8:] == quoted


def test_truncated_packets_to_a_service_are_dropped(world: World) -> None:
    frame = bytes(world.call(udp()))
    header = 20 if world.ip is IP else 40
    for length in (header + 4, header + 6, header + 7):
        world.datapath.events()
        ether = Ether(src=POD_MAC, dst="02:00:00:00:00:bb", type=0x0800 if world.ip is IP else 0x86DD)
        run = run_packet(world.datapath.loaded.programs["endpoint_egress"], bytes(ether) + frame[:length])
        assert run.verdict == TC_SHOT
        assert -world.datapath.events()[-1].reason == DropReason.INVALID_PACKET_DROPPED
