"""Datagrams from one port of a pod to one backend, through two Services or none: each answer finds its question."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtFlag, DropReason

from .conftest import OTHER_IFINDEX, TC_REDIRECT, TC_SHOT, Datapath
from .test_service_packets import OTHER_SERVICE_ID, PORT, SERVICE_ID, SPORT, TARGET, World, ends, together

pytestmark = pytest.mark.kernel

UNKNOWN = DropReason.UNKNOWN_CONNECTION_TRACKING_STATE


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath) -> Iterator[World]:
    """Both Services have one backend, the same."""
    found = World(datapath, request.param)
    found.serve(found.other, OTHER_SERVICE_ID, found.far)
    yield found
    datapath.reset()


def udp(sport: int = SPORT, dport: int = PORT) -> Packet:
    return UDP(sport=sport, dport=dport) / Raw(b"question")


def answer(world: World, port: int) -> tuple[str, int, str, int]:
    return ends(world.into(world.answer(UDP(sport=TARGET, dport=port) / Raw(b"answer"))))


def direct(world: World, sport: int = SPORT) -> None:
    """The pod talks to the backend itself from this port, as it does when its socket was translated for a Service."""
    world.out(world.ip(src=world.pod, dst=world.far) / udp(sport, TARGET))


def test_two_services_asked_at_once(world: World) -> None:
    first, second = world.out(world.call(udp())), world.out(world.call(udp(), world.other))
    assert ends(first) == (world.pod, SPORT, world.far, TARGET)
    port = second[UDP].sport
    assert ends(second) == (world.pod, port, world.far, TARGET)
    assert port >= 32768
    assert port != SPORT
    for _ in range(2):
        assert answer(world, port) == (world.other, PORT, world.pod, SPORT)
        assert answer(world, SPORT) == (world.service, PORT, world.pod, SPORT)
    assert [world.out(world.call(udp(), service))[UDP].sport for service in (world.other, world.service)] == [
        port,
        SPORT,
    ]
    assert world.entry(world.far, port, protocol=17).flags == CtFlag.TRANSLATED | CtFlag.SEEN_REPLY | CtFlag.PORT


def test_the_backend_itself_and_then_a_service(world: World) -> None:
    direct(world)
    port = world.out(world.call(udp()))[UDP].sport
    assert port != SPORT
    assert answer(world, port) == (world.service, PORT, world.pod, SPORT)
    assert answer(world, SPORT) == (world.far, TARGET, world.pod, SPORT)


def test_a_forgotten_flow_gets_its_port_again(world: World) -> None:
    direct(world)
    port = world.out(world.call(udp(), world.other))[UDP].sport
    assert port != SPORT
    flows = world.datapath.tables["nn_nat"]
    for key, _ in list(flows.items()):
        flows.delete(key)
    assert world.out(world.call(udp(), world.other))[UDP].sport == port


def test_flows_have_different_ports(world: World) -> None:
    for sport in range(20000, 20060):
        direct(world, sport)
    ports = {world.out(world.call(udp(sport), world.other))[UDP].sport: sport for sport in range(20000, 20060)}
    assert len(ports) == 60
    assert not ports.keys() & set(ports.values())
    assert all(answer(world, port)[3] == sport for port, sport in ports.items())


def test_no_port_is_left(world: World) -> None:
    direct(world)
    port = world.out(world.call(udp(), world.other))[UDP].sport
    entry = world.entry(world.far, port, protocol=17)
    flows, connections = (world.datapath.tables[name] for name in ("nn_nat", "nn_ct"))
    for key, _ in list(flows.items()):
        flows.delete(key)
    # Every port that may be tried belongs to something else.
    for number in range(4):
        other = 32768 + (port - 32768 + number * 7919) % 32768
        key = abi.CtKey(ip_address(world.pod), ip_address(world.far), other, TARGET, 17)
        connections.update(key, entry._replace(flags=0))
    world.refused(world.call(udp(), world.other), UNKNOWN)


def test_the_pods_own_use_of_the_port_is_refused_while_the_flow_lives(world: World) -> None:
    direct(world)
    port = world.out(world.call(udp(), world.other))[UDP].sport
    world.refused(world.ip(src=world.pod, dst=world.far) / udp(port, TARGET), UNKNOWN)
    assert answer(world, port) == (world.other, PORT, world.pod, SPORT)


def test_an_answer_to_a_port_that_is_not_known_any_more_is_dropped(world: World) -> None:
    direct(world)
    port = world.out(world.call(udp(), world.other))[UDP].sport
    flows = world.datapath.tables["nn_nat"]
    halves = dict(flows.items())
    ((key, entry),) = [item for item in halves.items() if item[0].reply]
    assert (key.dport, entry.dport, entry.service_id, entry.endpoint_id) == (port, SPORT, OTHER_SERVICE_ID, 1)
    for of_others in (False, True):
        for half, known in halves.items():
            if of_others:
                flows.update(half, known._replace(endpoint_id=9))
            else:
                flows.delete(half)
        world.into(world.answer(UDP(sport=TARGET, dport=port)), TC_SHOT)
        assert -world.datapath.events()[-1].reason == UNKNOWN
        world.out(world.call(udp(), world.other))  # makes both again
        assert answer(world, port)[3] == SPORT


def test_the_next_backend_is_met_from_the_pods_port(world: World) -> None:
    direct(world)
    assert world.out(world.call(udp(), world.other))[UDP].sport != SPORT
    world.serve(world.other, OTHER_SERVICE_ID, world.farther)
    world.leave(world.far, OTHER_SERVICE_ID)
    assert ends(world.out(world.call(udp(), world.other))) == (world.pod, SPORT, world.farther, TARGET)


def test_same_node(world: World) -> None:
    world.datapath.endpoint(world.near, 2000, number=2, ifindex=OTHER_IFINDEX)
    for service, number in ((world.service, SERVICE_ID), (world.other, OTHER_SERVICE_ID)):
        world.serve(service, number, world.near)
        world.leave(world.far, number)
    sent = [world.out(world.call(udp(), service), TC_REDIRECT)[UDP].sport for service in (world.service, world.other)]
    assert sent[0] == SPORT != sent[1]
    # The answers, from the other pod's interface: the two change places.
    world.datapath.endpoint(world.pod, 1000, number=1, ifindex=OTHER_IFINDEX)
    entry = abi.always(abi.EndpointEntry(1, 2000, 2, 0, "02:00:00:00:00:01"))
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(world.near)), entry)
    for port, service in zip(sent, (world.service, world.other), strict=True):
        back = world.out(world.answer(UDP(sport=TARGET, dport=port), world.near), TC_REDIRECT)
        assert ends(back) == (service, PORT, world.pod, SPORT)


def test_a_pod_that_gets_itself_keeps_its_port(world: World) -> None:
    world.serve(world.other, OTHER_SERVICE_ID, world.pod)
    direct(world)
    entry = world.entry(world.far, protocol=17)
    own = abi.CtKey(ip_address(world.pod), ip_address(world.pod), SPORT, TARGET, 17)
    world.datapath.tables["nn_ct"].update(own, entry)
    called = world.out(world.call(udp(), world.other), TC_REDIRECT)
    assert ends(called) == (world.nobody, SPORT, world.pod, TARGET)


def test_icmp_errors_quote_the_pods_own_port(world: World) -> None:
    direct(world)
    sent = world.out(world.call(udp(), world.other))
    assert sent[UDP].sport != SPORT
    layer = ICMP(type=3, code=3) if world.ip is IP else ICMPv6DestUnreach(code=4)
    error = world.into(world.ip(src=world.far, dst=world.pod) / layer / Raw(bytes(sent)))
    inner = world.ip(bytes(error.payload)[8:])
    assert ends(inner) == (world.pod, SPORT, world.other, PORT)


def test_fragments_both_ways(datapath: Datapath) -> None:
    world = World(datapath, 4)
    world.serve(world.other, OTHER_SERVICE_ID, world.far)
    direct(world)
    payload = bytes(range(250)) * 12
    big = world.call(UDP(sport=SPORT, dport=PORT) / Raw(payload), world.other)
    big.id = 7
    sent = together([datapath.run("endpoint_egress", piece).packet for piece in fragment(big, fragsize=1400)])
    port = sent[UDP].sport
    assert ends(sent) == (world.pod, port, world.far, TARGET)
    assert port != SPORT
    back = world.answer(UDP(sport=TARGET, dport=port) / Raw(payload))
    back.id = 8
    pieces = fragment(back, fragsize=1400)
    received = together([datapath.run("endpoint_ingress", piece).packet for piece in pieces])
    assert ends(received) == (world.other, PORT, world.pod, SPORT)
    assert bytes(received[UDP].payload) == payload
    datapath.reset()
