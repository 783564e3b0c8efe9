"""Services that are called from outside: every packet of a flow, at each of the two programs on uplinks."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtStatus, EventType, NatFlag, NatHalf, ObservationPoint

from .conftest import TC_OK, TC_REDIRECT, TC_SHOT, Datapath
from .outside import (
    CLIENT_PORT,
    FAR_POD,
    ISN,
    NODE_PORT,
    POD,
    PROOF,
    SERVICE_ID,
    SOURCE_PORTS,
    UPLINK,
    WORLD,
    Ends,
    Outside,
    ask,
    serving,
)
from .test_service_packets import TARGET, check_refusal, ends, monotonic, recomputed

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def served(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    yield from serving(bpffs, bpf_cache, "transit")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def outside(request: pytest.FixtureRequest, served: Datapath) -> Outside:
    return Outside(served, request.param)


@pytest.fixture(params=[TCP, UDP], ids=["tcp", "udp"])
def layer(request: pytest.FixtureRequest) -> type[Packet]:
    kind: type[Packet] = request.param
    return kind


def more(layer: type[Packet]) -> dict[str, object]:
    """Fields of a packet in the middle of a flow."""
    return {"flags": "PA"} if layer is TCP else {}


def test_a_backend_here_sees_the_client(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(layer))))
    assert there == (outside.client, CLIENT_PORT, outside.near, TARGET)
    back = ends(outside.leaves(outside.answer(layer, there, **more(layer))))
    assert back == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)
    assert set(outside.halves()) == {NatHalf.CLIENT, NatHalf.REPLY}


def test_a_backend_of_the_nodes_own_network(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.node)
    there = ends(outside.enters(outside.call(ask(layer))))
    assert there == (outside.client, CLIENT_PORT, outside.node, TARGET)
    back = outside.leaves(outside.answer(layer, there, **more(layer)), ingress=0)
    assert ends(back) == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)
    assert set(outside.halves()) == {NatHalf.CLIENT, NatHalf.REPLY}


def test_a_backend_elsewhere_sees_the_node(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.far)
    between = outside.enters(outside.call(ask(layer)))
    assert ends(between) == (outside.client, CLIENT_PORT, outside.far, TARGET)
    there = ends(outside.leaves(between))
    assert (there[0], *there[2:]) == (outside.node, outside.far, TARGET)
    assert there[1] in SOURCE_PORTS
    between = outside.enters(outside.answer(layer, there, **more(layer)))
    assert ends(between) == (outside.far, TARGET, outside.client, CLIENT_PORT)
    assert ends(outside.leaves(between)) == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)
    assert set(outside.halves()) == set(NatHalf)


def test_a_load_balancer_address(outside: Outside, layer: type[Packet]) -> None:
    """The source is the node's address, not that of the Service."""
    outside.serve(outside.far, address=outside.vip)
    there = ends(outside.leaves(outside.enters(outside.call(ask(layer), to=outside.vip))))
    assert there[0] == outside.node
    between = outside.enters(outside.answer(layer, there, **more(layer)))
    assert ends(outside.leaves(between))[:2] == (outside.vip, NODE_PORT)


def test_without_an_address_of_the_node_no_flow_is_opened(outside: Outside) -> None:
    outside.serve(outside.far)
    outside.tables["nn_source_addr"].delete(abi.U32(outside.version))
    outside.datapath.events()
    outside.enters(outside.call(ask(TCP)), verdict=2)
    assert [-event.reason for event in outside.datapath.events()] == [abi.DropReason.NO_MAPPING_FOR_NAT_MASQUERADE]
    assert not outside.halves()


def test_the_client_is_the_backend(outside: Outside, layer: type[Packet]) -> None:
    """A pod of another node calls itself by this node. Between the two translations the packet has one address at both
    ends."""
    outside.serve(outside.far)
    there = ends(outside.leaves(outside.enters(outside.call(ask(layer), client=outside.far))))
    assert (there[0], there[2]) == (outside.node, outside.far)
    back = outside.leaves(outside.enters(outside.answer(layer, there, **more(layer))))
    assert ends(back) == (outside.node, NODE_PORT, outside.far, CLIENT_PORT)


def test_each_flow_has_its_port(outside: Outside, layer: type[Packet]) -> None:
    """Unique for the backend's end, whatever the client or the Service was."""
    outside.serve(outside.far)
    outside.serve(outside.far, address=outside.vip, number=SERVICE_ID + 1)
    seen = set()
    calls = [(client, to) for client in (outside.client, outside.other) for to in (outside.node, outside.vip)]
    for client, to in calls:
        for port in range(CLIENT_PORT, CLIENT_PORT + 50):
            there = ends(outside.leaves(outside.enters(outside.call(ask(layer, port), client, to))))
            assert there[2:] == (outside.far, TARGET)
            seen.add(there[1])
    assert len(seen) == 50 * len(calls)
    assert seen <= set(SOURCE_PORTS)


def test_a_lost_flow_gets_the_same_port_again(outside: Outside) -> None:
    outside.serve(outside.far)
    call = outside.call(ask(TCP))
    before = ends(outside.leaves(outside.enters(call)))
    for key, _ in list(outside.tables["nn_nat"].items()):
        outside.tables["nn_nat"].delete(key)
    later = outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="A"))
    assert ends(outside.leaves(outside.enters(later))) == before


def test_all_halves_are_used_and_end_together(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.far)
    there = ends(outside.leaves(outside.enters(outside.call(ask(layer)))))
    for key, entry in list(outside.tables["nn_nat"].items()):
        outside.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 20))
    outside.leaves(outside.enters(outside.answer(layer, there, **more(layer))))
    for key, entry in outside.tables["nn_nat"].items():
        assert abs(entry.last_seen - monotonic()) <= 1
        if key.reply in (NatHalf.CLIENT, NatHalf.SOURCE_CLIENT):
            assert entry.flags & NatFlag.SEEN_REPLY
    # A flow whose backend is gone: its next packet chooses again, and nothing of the old one stays.
    for protocol in (6, 17):
        outside.tables["nn_member"].delete(abi.MemberKey(SERVICE_ID, outside.backend_id(outside.far, protocol)))
        outside.tables["nn_backend"].delete(abi.U32(outside.backend_id(outside.far, protocol)))
    outside.serve(outside.near)
    assert ends(outside.enters(outside.call(ask(layer))))[2] == outside.near
    assert set(outside.halves()) == {NatHalf.CLIENT, NatHalf.REPLY}


def test_a_syn_does_not_end_an_open_connection(outside: Outside) -> None:
    """Anyone can send it in the client's name."""
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(TCP))))
    outside.leaves(outside.answer(TCP, there, flags="SA"))
    outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, **PROOF)))
    outside.serve(outside.far)
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.near
    closing = TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="FA")
    outside.enters(outside.call(closing))
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.near
    outside.leaves(outside.answer(TCP, there, flags="FA"))
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.far


@pytest.mark.parametrize("place", ["near", "far"])
def test_what_proves_a_client(outside: Outside, place: str) -> None:
    """Only the acknowledgement of the SYN-ACK: its number is known to its receiver only."""
    outside.serve(getattr(outside, place))
    call = outside.call(ask(TCP))
    there = ends(outside.leaves(outside.enters(call)) if place == "far" else outside.enters(call))

    def answers(**fields: object) -> None:
        packet = outside.answer(TCP, there, **fields)
        outside.leaves(outside.enters(packet) if place == "far" else packet)

    def states(**fields: object) -> list[bool]:
        """Whether the flow is open after this packet of the client, in each half of the client."""
        between = outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, **fields)))
        if place == "far":
            outside.leaves(between)
        found = [(key.reply, entry.flags) for key, entry in outside.tables["nn_nat"].items() if not key.reply & 1]
        return [bool(flags & NatFlag.OPENED) for _, flags in sorted(found)]

    no, yes = ([False], [True]) if place == "near" else ([False] * 2, [True] * 2)
    number = int(PROOF["ack"])
    assert states(**PROOF) == no, "nothing was answered"
    # A reset has the number of the packet that it answers.
    answers(flags="R", seq=7)
    assert states(flags="A", ack=7 + 4) == no
    answers(flags="SA")
    for ack in (0, number - 1, number + 1, ISN, number ^ 1 << 31):
        assert states(flags="A", ack=ack) == no
    assert states(flags="P", ack=number) == no
    assert states(flags="S", ack=number) == no
    # The backend answers each cookie's SYN with another number: the last one counts.
    answers(flags="SA", seq=90000)
    assert states(flags="A", ack=number) == no
    assert states(flags="PA", ack=90005) == yes


def test_what_proves_a_client_whose_flow_was_lost(outside: Outside) -> None:
    """There is no SYN-ACK any more: the client acknowledges an answer, or later ones with it."""
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="A"))))
    for number in range(3):
        outside.leaves(outside.answer(TCP, there, flags="PA", seq=5000 + number * 4))

    def is_open(ack: int) -> bool:
        outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="A", ack=ack)))
        (flags,) = (entry.flags for key, entry in outside.tables["nn_nat"].items() if key.reply == NatHalf.CLIENT)
        return bool(flags & NatFlag.OPENED)

    assert not is_open(5003)
    assert not is_open(5004 + 0xFFFF)
    assert is_open(5012)


def test_an_opening_connection_whose_backend_left(outside: Outside) -> None:
    outside.serve(outside.near)
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.near
    outside.serve(outside.far)
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.far


def test_what_outlives_its_service(outside: Outside) -> None:
    """An open connection stays, as under kube-proxy."""
    outside.serve(outside.far)
    outside.enters(outside.call(ask(TCP)))
    for name in ("nn_frontend", "nn_service_addr", "nn_backend", "nn_member"):
        for key, _ in list(outside.tables[name].items()):
            outside.tables[name].delete(key)
    later = outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="A"))
    assert ends(outside.enters(later))[2:] == (outside.far, TARGET)
    assert ends(outside.enters(outside.call(ask(TCP))))[2:] == (outside.node, NODE_PORT)


@pytest.mark.parametrize("of", ["node", "near"])
def test_forged_sources_open_no_flow(outside: Outside, layer: type[Packet], of: str) -> None:
    """The node's address and its pods' addresses do not come from outside."""
    outside.serve(outside.near, outside.far)
    forged = outside.call(ask(layer), client=getattr(outside, of))
    assert ends(outside.enters(forged)) == ends(forged)
    assert not outside.halves()


def test_other_ports_of_the_node_are_its_own(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near)
    other = outside.call(ask(layer, dport=22))
    assert ends(outside.enters(other)) == ends(other)
    assert not outside.halves()


def test_packets_that_only_look_like_replies(outside: Outside) -> None:
    """Another host than the backend, another port of the node, and a SYN: they are the node's stack's."""
    outside.serve(outside.far)
    there = ends(outside.leaves(outside.enters(outside.call(ask(TCP)))))
    node, port = there[:2]
    for packet in (
        outside.ip(src=outside.other, dst=node) / TCP(sport=TARGET, dport=port, flags="A"),
        outside.ip(src=outside.far, dst=node) / TCP(sport=TARGET + 1, dport=port, flags="A"),
        outside.ip(src=outside.far, dst=node) / TCP(sport=TARGET, dport=port ^ 1, flags="A"),
        outside.ip(src=outside.far, dst=node) / TCP(sport=TARGET, dport=port, flags="S"),
    ):
        assert ends(outside.enters(packet)) == ends(packet)


def test_what_the_node_itself_sends_keeps_its_source(outside: Outside) -> None:
    """It has no interface by which it came, and may have the ends of a client that is the node's neighbour."""
    outside.serve(outside.far)
    between = outside.enters(outside.call(ask(TCP)))
    assert ends(outside.leaves(between, ingress=0)) == ends(between)


def test_a_client_that_calls_two_services_from_one_port(outside: Outside, layer: type[Packet]) -> None:
    """Both have the same backend: the second flow gets another port on the way to it."""
    outside.serve(outside.near)
    outside.serve(outside.near, address=outside.vip, number=SERVICE_ID + 1)
    first = ends(outside.enters(outside.call(ask(layer))))
    second = ends(outside.enters(outside.call(ask(layer), to=outside.vip)))
    assert first == (outside.client, CLIENT_PORT, outside.near, TARGET)
    assert (second[0], *second[2:]) == (outside.client, outside.near, TARGET)
    assert second[1] != CLIENT_PORT
    for to, service in ((first, outside.node), (second, outside.vip)):
        back = ends(outside.leaves(outside.answer(layer, to, **more(layer))))
        assert back == (service, NODE_PORT, outside.client, CLIENT_PORT)
    # The next packet, and a SYN that is sent again, keep the port.
    again = outside.call(layer(sport=CLIENT_PORT, dport=NODE_PORT, **more(layer)) / Raw(b"more"), to=outside.vip)
    assert ends(outside.enters(again)) == second
    assert ends(outside.enters(outside.call(ask(layer), to=outside.vip))) == second


def test_a_client_that_calls_the_backend_itself(outside: Outside, layer: type[Packet]) -> None:
    """The backend's conntrack knows its connection."""
    outside.serve(outside.near)
    key = abi.CtKey(
        ip_address(outside.near), ip_address(outside.client), TARGET, CLIENT_PORT, 6 if layer is TCP else 17
    )
    entry = abi.CtEntry(monotonic(), 0, 0, 0, abi.CtFlag(0), 0, 1, monotonic())._replace(direction=1, flags=1)
    outside.tables["nn_ct"].update(key, entry)
    there = ends(outside.enters(outside.call(ask(layer))))
    assert (there[0], there[2]) == (outside.client, outside.near)
    assert there[1] != CLIENT_PORT


@pytest.mark.parametrize("place", ["near", "far"])
def test_a_new_flow_is_reported_once_with_its_service_and_client(
    outside: Outside, layer: type[Packet], place: str
) -> None:
    """Behind this interface nothing else knows both."""
    backend = getattr(outside, place)
    outside.serve(backend)
    outside.datapath.events()
    between = outside.enters(outside.call(ask(layer)))
    (event,) = outside.datapath.events()
    assert (event.type, event.point, event.reason) == (EventType.TRACE, ObservationPoint.FROM_NETWORK, 0)
    assert (str(event.saddr), event.sport) == (outside.client, CLIENT_PORT)
    assert (str(event.daddr), event.dport) == (backend, TARGET)
    assert (event.service_id, event.direction, event.ct_status, event.is_reply) == (SERVICE_ID, 1, CtStatus.NEW, 0)
    assert (event.src_identity, event.dst_identity) == (WORLD, POD if place == "near" else FAR_POD)
    # Nothing for the rest of the flow.
    there = ends(outside.leaves(between)) if place == "far" else ends(between)
    answer = outside.answer(layer, there, **more(layer))
    outside.enters(answer) if place == "far" else outside.leaves(answer)
    outside.enters(outside.call(layer(sport=CLIENT_PORT, dport=NODE_PORT, **more(layer)) / Raw(b"more")))
    assert outside.datapath.events() == []


def test_a_drop_names_the_service(outside: Outside, layer: type[Packet]) -> None:
    outside.serve()
    outside.datapath.events()
    outside.enters(outside.call(ask(layer)), verdict=TC_REDIRECT)
    (event,) = outside.datapath.events()
    assert (event.type, -event.reason) == (EventType.DROP, abi.DropReason.SERVICE_BACKEND_NOT_FOUND)
    assert (event.service_id, str(event.saddr), event.src_identity) == (SERVICE_ID, outside.client, WORLD)
    # The next packet has nothing of this one.
    outside.serve(outside.near, port=NODE_PORT + 1, number=SERVICE_ID + 1)
    outside.enters(outside.call(ask(layer, dport=NODE_PORT + 1)))
    (event,) = outside.datapath.events()
    assert (event.type, event.service_id) == (EventType.TRACE, SERVICE_ID + 1)


def test_a_direct_connection_with_the_ends_of_a_closed_flow(outside: Outside) -> None:
    """A client may use one port for a call of the NodePort and, later, for a call of the pod: their destinations
    differ. With the source kept both have the same ends at the backend."""
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(TCP))))
    outside.leaves(outside.answer(TCP, there, flags="SA"))
    outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="FA")))
    outside.leaves(outside.answer(TCP, there, flags="FA"))
    direct = ends(outside.enters(outside.call(ask(TCP, dport=TARGET), to=outside.near)))
    assert direct == (outside.client, CLIENT_PORT, outside.near, TARGET)
    back = ends(outside.leaves(outside.answer(TCP, direct, flags="SA")))
    assert back == (outside.near, TARGET, outside.client, CLIENT_PORT)
    assert not outside.halves()


def expire(outside: Outside, client_port: int = CLIENT_PORT) -> None:
    """All flows with this port of the client had their last packet long ago."""
    for key, entry in list(outside.tables["nn_nat"].items()):
        if client_port in (key.sport, key.dport):
            outside.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 9000))


def test_a_direct_flow_with_the_ends_of_an_expired_one(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near)
    outside.enters(outside.call(ask(layer)))
    expire(outside)
    direct = ends(outside.enters(outside.call(ask(layer, dport=TARGET), to=outside.near)))
    assert direct == (outside.client, CLIENT_PORT, outside.near, TARGET)
    assert not outside.halves()


@pytest.mark.parametrize("opened", [False, True], ids=["half-open", "open"])
def test_a_direct_flow_beside_one_of_a_service(outside: Outside, layer: type[Packet], *, opened: bool) -> None:
    """It gets another port on the way to the backend, and both work. Anyone can send the first packet of either."""
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(layer))))
    if opened:
        outside.leaves(outside.answer(layer, there, **more(layer)))
        outside.enters(outside.call(layer(sport=CLIENT_PORT, dport=NODE_PORT, **more(layer)) / Raw(b"more")))
    call = outside.call(ask(layer, dport=TARGET), to=outside.near)
    outside.datapath.events()
    direct = ends(outside.enters(call))
    assert (direct[0], *direct[2:]) == (outside.client, outside.near, TARGET)
    assert direct[1] != CLIENT_PORT
    # The pod's own program reports it.
    assert outside.datapath.events() == []
    for to, service in ((there, (outside.node, NODE_PORT)), (direct, (outside.near, TARGET))):
        back = outside.leaves(outside.answer(layer, to, **more(layer)))
        assert ends(back) == (*service, outside.client, CLIENT_PORT)
        again = outside.call(layer(sport=CLIENT_PORT, dport=service[1], **more(layer)) / Raw(b"more"), to=service[0])
        assert ends(outside.enters(again)) == to
    # Sent again, or forged.
    assert ends(outside.enters(call)) == direct
    # The Service's flow has ended, then the direct one too: the next one needs no other port.
    expire(outside)
    assert ends(outside.enters(call)) == ((outside.client, CLIENT_PORT, outside.near, TARGET))
    assert not outside.halves()


def test_a_direct_connection_after_a_direct_one(outside: Outside) -> None:
    """Both ends have closed the first one, and the Service's is still open."""
    outside.serve(outside.near)
    outside.enters(outside.call(ask(TCP)))
    call = outside.call(ask(TCP, dport=TARGET), to=outside.near)
    direct = ends(outside.enters(call))
    outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=TARGET, flags="FA"), to=outside.near))
    outside.leaves(outside.answer(TCP, direct, flags="FA"))
    assert ends(outside.enters(call)) == direct
    entries = {key.reply: entry for key, entry in outside.tables["nn_nat"].items() if key.dport == TARGET}
    assert not entries[NatHalf.CLIENT].flags


def test_a_direct_flow_to_a_backend_elsewhere(outside: Outside, layer: type[Packet]) -> None:
    """This node routes it. Its source is replaced too, so the answer comes back through this node."""
    outside.serve(outside.far)
    first = ends(outside.leaves(outside.enters(outside.call(ask(layer)))))
    direct = ends(outside.leaves(outside.enters(outside.call(ask(layer, dport=TARGET), to=outside.far))))
    assert (direct[0], *direct[2:]) == (outside.node, outside.far, TARGET)
    assert direct[1] != first[1]
    for to, service in ((first, (outside.node, NODE_PORT)), (direct, (outside.far, TARGET))):
        back = outside.leaves(outside.enters(outside.answer(layer, to, **more(layer))))
        assert ends(back) == (*service, outside.client, CLIENT_PORT)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def few(request: pytest.FixtureRequest, bpffs: Path, bpf_cache: Path) -> Iterator[Outside]:
    """Eight ports for each backend."""
    for datapath in serving(bpffs, bpf_cache, "few", source_ports=8):
        found = Outside(datapath, request.param)
        found.serve(found.far)
        yield found


def opened(outside: Outside, client: str, port: int, *, answered: bool = True, layer: type[Packet] = TCP) -> bool:
    """Open a flow, in which both sides speak. False if its first packet is dropped."""
    run = outside.run("netdev_ingress", outside.call(ask(layer, port), client), UPLINK)
    if run.verdict == TC_SHOT:
        return False
    there = ends(outside.leaves(Ether(run.packet)[outside.ip]))
    if answered:
        outside.leaves(outside.enters(outside.answer(layer, there, **({"flags": "SA"} if layer is TCP else {}))))
        again = ask(UDP, port) if layer is UDP else TCP(sport=port, dport=NODE_PORT, **PROOF)
        outside.leaves(outside.enters(outside.call(again, client)))
    return True


def clients(outside: Outside) -> Counter[str]:
    """How many flows each client has; each flow is complete."""
    halves = Counter(key.reply for key, _ in outside.tables["nn_nat"].items())
    assert len(set(halves.values())) == 1
    return Counter(str(key.saddr) for key, _ in outside.tables["nn_nat"].items() if key.reply == NatHalf.CLIENT)


def test_one_client_with_all_ports_does_not_evict_itself(few: Outside) -> None:
    """Further flows are dropped, counted and reported; the others stay."""
    results = [opened(few, few.client, port) for port in range(1000, 1060)]
    assert results.count(True) == 8
    assert clients(few) == {few.client: 8}
    reasons = {-event.reason for event in few.datapath.events() if event.reason}
    assert reasons == {abi.DropReason.NO_MAPPING_FOR_NAT_MASQUERADE}
    counted = few.tables["nn_metrics"].get(abi.MetricsKey(abi.DropReason.NO_MAPPING_FOR_NAT_MASQUERADE, 1))
    assert sum(cpu.packets for cpu in counted) == 52
    # Flows that have expired give their ports back, and nothing of them stays.
    for key, entry in list(few.tables["nn_nat"].items()):
        few.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 8100))
    assert all(opened(few, few.other, port) for port in range(2000, 2004))
    assert clients(few)[few.other] == 4


def test_one_client_with_all_ports_does_not_keep_out_others(few: Outside) -> None:
    """The others get ports until it has no more than half of them."""
    assert sum(opened(few, few.client, port) for port in range(1000, 1060)) == 8
    assert sum(opened(few, few.other, port) for port in range(1000, 1060)) == 4
    assert clients(few) == {few.client: 4, few.other: 4}


def test_closed_connections_keep_no_port(few: Outside) -> None:
    """Also against later ones of the same client."""
    for port in range(1000, 1040):
        assert opened(few, few.client, port)
        there = ends(few.leaves(few.enters(few.call(TCP(sport=port, dport=NODE_PORT, flags="FA")))))
        few.leaves(few.enters(few.answer(TCP, there, flags="FA")))
    assert clients(few) == {few.client: 8}


def test_flows_that_never_open_keep_no_port(few: Outside) -> None:
    for port in range(1000, 1060):
        assert opened(few, few.client, port, answered=False)
    # Datagrams prove no client, whatever was answered.
    for port in range(1000, 1060):
        assert opened(few, few.client, port, layer=UDP)
    assert clients(few) == {few.client: 16}
    assert sum(opened(few, few.other, port) for port in range(1000, 1060)) == 8
    assert opened(few, few.other, 1000, layer=UDP)
    assert clients(few)[few.other] == 9


def refused(outside: Outside, packet: Packet, reason: abi.DropReason, *, answered: bool = True) -> None:
    outside.datapath.events()
    run = outside.run("netdev_ingress", packet, UPLINK)
    assert [-event.reason for event in outside.datapath.events()] == [reason]
    assert run.verdict == (TC_REDIRECT if answered else TC_SHOT)
    if answered:
        # The MACs are exchanged: it leaves as it came.
        assert run.packet[:12] == bytes.fromhex("0200000000aa000000000000")
        check_refusal(outside.ip(bytes(packet)), Ether(run.packet)[outside.ip])
    assert not outside.halves()


def test_a_service_without_backends(outside: Outside, layer: type[Packet]) -> None:
    outside.serve()
    refused(outside, outside.call(ask(layer)), abi.DropReason.SERVICE_BACKEND_NOT_FOUND)
    # Backends on other nodes only, and the policy is Local: the load balancer must not learn of it.
    outside.serve(flags=abi.FrontendFlag.ONLY_ELSEWHERE)
    refused(outside, outside.call(ask(layer)), abi.DropReason.SERVICE_BACKEND_NOT_FOUND, answered=False)


def test_what_a_cluster_ip_does_not_serve(outside: Outside) -> None:
    outside.serve(outside.near, address=outside.vip, cluster_ip=True)
    ping = ICMP() if outside.version == 4 else ICMPv6EchoRequest()
    for layer in (ask(TCP, dport=22), ask(UDP, dport=22), ping):
        refused(outside, outside.call(layer, to=outside.vip), abi.DropReason.IS_A_CLUSTERIP)
    # The node answers for its own address.
    outside.serve(outside.near)
    assert outside.enters(outside.call(ping)).dst == outside.node


def test_policy_local_has_backends_of_its_own(outside: Outside, layer: type[Packet]) -> None:
    """EXTERNAL entries decide, if INTERNAL says that there are some; and their source is kept, wherever they are."""
    outside.serve(outside.near, flags=abi.FrontendFlag.HAS_EXTERNAL)
    protocol = 6 if layer is TCP else 17
    addr, scope = ip_address(outside.node), abi.FrontendScope.EXTERNAL
    backend = outside.backend_id(outside.far, protocol)
    outside.tables["nn_backend"].update(abi.U32(backend), abi.AddressPort(ip_address(outside.far), TARGET, protocol))
    for slot, entry in (
        (1, abi.FrontendEntry(backend, SERVICE_ID, 0)),
        (0, abi.FrontendEntry(0, SERVICE_ID, 1, abi.FrontendFlag.KEEP_SOURCE)),
    ):
        outside.tables["nn_frontend"].update(abi.FrontendKey(addr, NODE_PORT, protocol, slot, scope), entry)
    between = outside.enters(outside.call(ask(layer)))
    assert ends(between)[2] == outside.far
    assert ends(outside.leaves(between)) == ends(between)


def test_source_ranges(outside: Outside, layer: type[Packet]) -> None:
    outside.serve(outside.near, address=outside.vip, flags=abi.FrontendFlag.SOURCE_RANGES)
    denied = abi.DropReason.DENIED_BY_LB_SRC_RANGE_CHECK
    refused(outside, outside.call(ask(layer), to=outside.vip), denied, answered=False)
    network = ip_network(f"{outside.client}/{24 if outside.version == 4 else 64}", strict=False)
    outside.tables["nn_source_range"].update(abi.SourceRangeKey.of(SERVICE_ID, network), abi.U32(1))
    assert ends(outside.enters(outside.call(ask(layer), to=outside.vip)))[2] == outside.near


def test_session_affinity(outside: Outside, layer: type[Packet]) -> None:
    """The client's address decides, not its port; a backend that takes no new flows loses it, and so does an idle
    client."""
    backends = (outside.near, outside.far)
    outside.serve(*backends, affinity_seconds=100)

    def chosen(client: str, port: int) -> str:
        return str(outside.enters(outside.call(ask(layer, port), client)).dst)

    first = {client: chosen(client, 1000) for client in (outside.client, outside.other)}
    for client, backend in first.items():
        assert {chosen(client, port) for port in range(1001, 1020)} == {backend}
    ours = [entry for key, entry in outside.tables["nn_affinity_out"].items() if str(key.client) == outside.client]
    assert [abs(entry.last_used - monotonic()) <= 1 for entry in ours] == [True]
    for key, entry in list(outside.tables["nn_affinity_out"].items()):
        outside.tables["nn_affinity_out"].update(key, entry._replace(last_used=monotonic() - 101))
    assert {chosen(f"{outside.client}"[:-1] + str(n), 5) for n in range(9)} == set(backends)
    # A backend that leaves loses its clients, also while others call it.
    protocol = 6 if layer is TCP else 17
    outside.serve(outside.near, affinity_seconds=100)
    member = abi.MemberKey(SERVICE_ID | abi.MEMBER_AFFINITY, outside.backend_id(outside.far, protocol))
    outside.tables["nn_member"].delete(member)
    for client in (outside.client, outside.other):
        assert {chosen(client, port) for port in range(2000, 2010)} == {outside.near}
    assert not list(outside.tables["nn_affinity"].items())


def errors(outside: Outside, about: Packet, *, too_big: bool = False) -> Packet:
    """ICMP errors about this packet: its receiver has closed the port, or a router has a smaller MTU."""
    quote = bytes(about)[: 28 if outside.version == 4 else 200]
    sender = outside.router if too_big else about.dst
    if outside.version == 4:
        kind = ICMP(type=3, code=4, nexthopmtu=1280) if too_big else ICMP(type=3, code=3)
    else:
        kind = ICMPv6PacketTooBig(mtu=1280) if too_big else ICMPv6DestUnreach(code=4)
    return outside.ip(src=sender, dst=about.src) / kind / Raw(quote)


def quoted(outside: Outside, error: Packet) -> Ends:
    """The ends of the quoted packet; its header checksum is right."""
    data = bytes(error.payload)[8:]
    inner = outside.ip(data)
    if outside.version == 4:
        assert data[10:12] == recomputed(IP(data[:20]))[10:12]
    sport, dport = struct.unpack_from("!HH", data, 20 if outside.version == 4 else 40)
    return inner.src, sport, inner.dst, dport


@pytest.mark.parametrize("too_big", [False, True], ids=["by-the-receiver", "by-a-router"])
def test_errors_about_what_the_client_sent(outside: Outside, layer: type[Packet], *, too_big: bool) -> None:
    """The client finds its socket by the quote, and the error of the backend comes from the Service."""
    outside.serve(outside.near)
    there = outside.enters(outside.call(ask(layer)))
    error = outside.leaves(errors(outside, there, too_big=too_big))
    assert (error.src, error.dst) == (outside.router if too_big else outside.node, outside.client)
    assert quoted(outside, error) == (outside.client, CLIENT_PORT, outside.node, NODE_PORT)


@pytest.mark.parametrize("too_big", [False, True], ids=["by-the-receiver", "by-a-router"])
def test_errors_from_beyond_the_source_translation(outside: Outside, layer: type[Packet], *, too_big: bool) -> None:
    outside.serve(outside.far)
    there = outside.leaves(outside.enters(outside.call(ask(layer))))
    between = outside.enters(errors(outside, there, too_big=too_big))
    assert (between.src, between.dst) == (outside.router if too_big else outside.far, outside.client)
    assert quoted(outside, between) == (outside.client, CLIENT_PORT, outside.far, TARGET)
    error = outside.leaves(between)
    assert (error.src, error.dst) == (outside.router if too_big else outside.node, outside.client)
    assert quoted(outside, error) == (outside.client, CLIENT_PORT, outside.node, NODE_PORT)


@pytest.mark.parametrize("too_big", [False, True], ids=["by-the-receiver", "by-a-router"])
def test_errors_about_what_the_backend_answered(outside: Outside, layer: type[Packet], *, too_big: bool) -> None:
    """For a backend on this node in one step, for another one in two."""
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(layer))))
    back = outside.leaves(outside.answer(layer, there, **more(layer)))
    error = outside.enters(errors(outside, back, too_big=too_big))
    assert (error.src, error.dst) == (outside.router if too_big else outside.client, outside.near)
    assert quoted(outside, error) == (outside.near, TARGET, outside.client, CLIENT_PORT)
    outside.serve(outside.far, port=NODE_PORT + 1)
    there = ends(outside.leaves(outside.enters(outside.call(ask(layer, dport=NODE_PORT + 1)))))
    back = outside.leaves(outside.enters(outside.answer(layer, there, **more(layer))))
    error = outside.leaves(outside.enters(errors(outside, back, too_big=too_big)))
    assert (error.src, error.dst) == (outside.router if too_big else outside.node, outside.far)
    assert quoted(outside, error) == (outside.far, TARGET, *there[:2])


def test_errors_about_other_packets_stay(outside: Outside) -> None:
    outside.serve(outside.near)
    outside.enters(outside.call(ask(UDP)))
    other = outside.ip(src=outside.node, dst=outside.client) / UDP(sport=53, dport=CLIENT_PORT) / Raw(b"other")
    error = errors(outside, other)
    assert quoted(outside, outside.enters(error)) == ends(other)
    # The receiver of the error is not the sender of what it quotes.
    between = outside.ip(src=outside.client, dst=outside.near) / ask(UDP)
    forged = errors(outside, between)
    forged.dst = outside.other
    assert outside.leaves(forged).src == outside.near


def pieces(outside: Outside, packet: Packet) -> list[Packet]:
    if outside.version == 4:
        return list(fragment(packet, fragsize=800))
    whole = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=7) / packet.payload
    return list(fragment6(whole, 900))


def enter(outside: Outside, packet: Packet) -> Packet:
    run = outside.run("netdev_ingress", packet, UPLINK)
    assert run.verdict == TC_OK
    return Ether(run.packet)[outside.ip]


def leave(outside: Outside, packet: Packet) -> Packet:
    run = outside.run("netdev_egress", packet, UPLINK)
    assert run.verdict == TC_OK
    return Ether(run.packet)[outside.ip]


@pytest.mark.parametrize("place", ["near", "far"])
def test_fragments_in_both_directions(outside: Outside, place: str) -> None:
    """All fragments get the addresses of the first one, in each step; the datagram's checksum is right at the end."""
    backend = getattr(outside, place)
    outside.serve(backend)
    data = bytes(range(256)) * 9

    def through(packet: Packet, *steps: Any) -> Packet:
        found = pieces(outside, packet)
        assert len(found) > 2
        for step in steps:
            found = [step(outside, piece) for piece in found]
        return _whole(outside, found)

    steps = (enter,) if place == "near" else (enter, leave)
    there = through(outside.call(UDP(sport=CLIENT_PORT, dport=NODE_PORT) / Raw(data)), *steps)
    assert (there.dst, bytes(there[UDP].payload)) == (backend, data)
    assert there.src == (outside.client if place == "near" else outside.node)
    back = outside.ip(src=backend, dst=there.src) / UDP(sport=TARGET, dport=there[UDP].sport) / Raw(data)
    steps = (leave,) if place == "near" else (enter, leave)
    answer = through(back, *steps)
    assert ends(answer) == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)


def _whole(outside: Outside, found: list[Packet]) -> Packet:
    if outside.version == 4:
        payload = b"".join(bytes(piece.payload) for piece in found)
        whole: Packet = IP(src=found[0].src, dst=found[0].dst, proto=17) / Raw(payload)
    else:
        payload = b"".join(bytes(piece[IPv6ExtHdrFragment].payload) for piece in found)
        whole = IPv6(src=found[0].src, dst=found[0].dst, nh=17) / Raw(payload)
    whole = whole.__class__(bytes(whole))
    assert bytes(whole) == recomputed(whole)
    return whole
