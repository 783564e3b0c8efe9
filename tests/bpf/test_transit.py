"""Services that are called from outside: every packet of a flow, at each of the two programs on uplinks."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtStatus, EventType, NatFlag, NatHalf, ObservationPoint

from .conftest import TC_OK, TC_SHOT, Datapath
from .outside import (
    CLIENT_PORT,
    FAR_POD,
    NODE_PORT,
    POD,
    SERVICE_ID,
    SOURCE_PORTS,
    UPLINK,
    WORLD,
    Outside,
    ask,
    serving,
)
from .test_service_packets import TARGET, ends, monotonic

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
    outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="A")))
    outside.serve(outside.far)
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.near
    closing = TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="FA")
    outside.enters(outside.call(closing))
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.near
    outside.leaves(outside.answer(TCP, there, flags="FA"))
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.far


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


def test_exhausted_ports_are_said(bpffs: Path, bpf_cache: Path) -> None:
    """Four ports for each backend: a fifth flow is dropped, counted and reported; the others stay."""
    for datapath in serving(bpffs, bpf_cache, "few", source_ports=4):
        outside = Outside(datapath, 4)
        outside.serve(outside.far)
        calls = [outside.call(ask(UDP, port)) for port in range(CLIENT_PORT, CLIENT_PORT + 40)]
        results = [outside.run("netdev_ingress", call, UPLINK).verdict for call in calls]
        assert results.count(TC_OK) == 4
        reasons = {-event.reason for event in datapath.events() if event.reason}
        assert reasons == {abi.DropReason.NO_MAPPING_FOR_NAT_MASQUERADE}
        halves = [key.reply for key, _ in outside.tables["nn_nat"].items()]
        assert sorted(halves) == sorted([*NatHalf] * 4)
        # Flows that have expired give their ports back, and nothing of them stays.
        for key, entry in list(outside.tables["nn_nat"].items()):
            outside.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - 200))
        for port in range(50000, 50004):
            outside.enters(outside.call(ask(UDP, port)))
        assert {key.sport for key, _ in outside.tables["nn_nat"].items() if key.reply == NatHalf.CLIENT} >= set(
            range(50000, 50004)
        )


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
    outside.enters(outside.call(ask(layer)), verdict=TC_SHOT)
    (event,) = outside.datapath.events()
    assert (event.type, -event.reason) == (EventType.DROP, abi.DropReason.SERVICE_BACKEND_NOT_FOUND)
    assert (event.service_id, str(event.saddr), event.src_identity) == (SERVICE_ID, outside.client, WORLD)
    # The next packet has nothing of this one.
    outside.serve(outside.near, port=NODE_PORT + 1, number=SERVICE_ID + 1)
    outside.enters(outside.call(ask(layer, dport=NODE_PORT + 1)))
    (event,) = outside.datapath.events()
    assert (event.type, event.service_id) == (EventType.TRACE, SERVICE_ID + 1)


@pytest.mark.xfail(strict=True, reason="the answer of a direct connection still gets the Service's address")
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
