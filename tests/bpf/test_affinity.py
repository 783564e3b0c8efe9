"""sessionAffinity ClientIP: packets and sockets of one client go to one backend."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP

from nodenet import abi

from . import sockworld
from .test_service_packets import PORT, SERVICE_ID, World

if TYPE_CHECKING:
    from .conftest import Datapath

pytestmark = pytest.mark.kernel

AFFINITY, SECONDS = 77, 60


@pytest.fixture(params=[4, 6])
def pod(request: pytest.FixtureRequest, datapath: Datapath) -> World:
    world = World(datapath, request.param)
    for key, _ in list(datapath.tables["nn_affinity"].items()):
        datapath.tables["nn_affinity"].delete(key)
    return world


def stick(world: World, *backends: str) -> None:
    """Session affinity, and these backends take new flows."""
    world.serve(world.service, SERVICE_ID, *backends)
    tables = world.datapath.tables
    key = abi.FrontendKey(ip_address(world.service), PORT, 6, 0)
    tables["nn_frontend"].update(key, abi.FrontendEntry(0, SERVICE_ID, len(backends), 0, AFFINITY, SECONDS))
    for member, _ in list(tables["nn_member"].items()):
        if member.service_id == SERVICE_ID | abi.MEMBER_AFFINITY:
            tables["nn_member"].delete(member)
    for backend in backends:
        number = world.backend_id(backend, 6)
        value = tables["nn_backend"].get(abi.U32(number))
        tables["nn_member"].update(abi.MemberKey(SERVICE_ID | abi.MEMBER_AFFINITY, number), value)


def call(world: World, sport: int) -> str:
    """The backend of a new connection."""
    packet = world.ip(src=world.pod, dst=world.service) / TCP(sport=sport, dport=PORT, flags="S")
    return str(world.out(packet).dst)


def now() -> int:
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def set_entry(world: World, backend: str, age: int) -> abi.AffinityKey:
    key = abi.AffinityKey(ip_address(world.pod), AFFINITY)
    world.datapath.tables["nn_affinity"].update(key, abi.AffinityEntry(world.backend_id(backend, 6), now() - age))
    return key


def test_without_it_connections_are_spread(pod: World) -> None:
    pod.serve(pod.service, SERVICE_ID, pod.far, pod.farther)
    assert {call(pod, 1000 + n) for n in range(20)} == {pod.far, pod.farther}
    assert not list(pod.datapath.tables["nn_affinity"].items())


def test_connections_of_one_client_have_one_backend(pod: World) -> None:
    stick(pod, pod.far, pod.farther)
    assert len({call(pod, 2000 + n) for n in range(20)}) == 1
    ((key, entry),) = pod.datapath.tables["nn_affinity"].items()
    assert key == abi.AffinityKey(ip_address(pod.pod), AFFINITY)
    assert abs(entry.last_used - now()) <= 1


@pytest.mark.parametrize("which", ["far", "farther"])
def test_each_connection_refreshes_it(pod: World, which: str) -> None:
    stick(pod, pod.far, pod.farther)
    key = set_entry(pod, getattr(pod, which), SECONDS - 2)
    assert {call(pod, 3000 + n) for n in range(6)} == {getattr(pod, which)}
    assert abs(pod.datapath.tables["nn_affinity"].get(key).last_used - now()) <= 1


def test_it_expires(pod: World) -> None:
    """An old entry does not decide: over many tries another backend is chosen at least once."""
    stick(pod, pod.far, pod.farther)
    found = set()
    for n in range(20):
        set_entry(pod, pod.far, SECONDS + 2)
        found.add(call(pod, 4000 + n))
    assert found == {pod.far, pod.farther}


def test_a_backend_that_takes_no_new_flows_loses_it(pod: World) -> None:
    stick(pod, pod.far, pod.farther)
    key = set_entry(pod, pod.far, 0)
    stick(pod, pod.farther)
    assert call(pod, 5000) == pod.farther
    assert pod.datapath.tables["nn_affinity"].get(key).backend_id == pod.backend_id(pod.farther, 6)
    # It comes back: the client stays with its new one.
    stick(pod, pod.far, pod.farther)
    assert {call(pod, 5100 + n) for n in range(10)} == {pod.farther}


PORTS = (9001, 9002, 9003)


def sockets_stick(world: sockworld.World) -> None:
    """Service ONE has affinity and three backends; a backend's number is its port."""
    tables = world.tables
    for port in PORTS:
        world.server(port)
    world.serve(sockworld.ONE, *PORTS)
    address = ip_address(sockworld.SERVICES[world.version][sockworld.ONE])
    key = abi.FrontendKey(address, sockworld.PORT, sockworld.UDP, 0)
    tables["nn_frontend"].update(key, abi.FrontendEntry(0, sockworld.ONE, len(PORTS), 0, AFFINITY, SECONDS))
    for port in PORTS:
        value = tables["nn_backend"].get(abi.U32(port))
        tables["nn_member"].update(abi.MemberKey(sockworld.ONE | abi.MEMBER_AFFINITY, port), value)
    for old, _ in list(tables["nn_affinity"].items()):
        tables["nn_affinity"].delete(old)


def reached(world: sockworld.World, name: str, how: str) -> int:
    """The backend that a new socket's datagram reaches: its peers show the Service, so ask the affinity's entry."""
    world.client(name)
    if how == "connect":
        world.process.do("connect", name, world.address(sockworld.ONE), sockworld.PORT)
        world.process.do("send", name, "ask")
    else:
        world.ask(name, sockworld.ONE)
    ((_, entry),) = world.tables["nn_affinity"].items()
    assert world.process.do("receive", f"server{entry.backend_id}")[0] == "ask"
    return int(entry.backend_id)


def test_new_sockets_of_one_client_have_one_backend(world: sockworld.World) -> None:
    sockets_stick(world)
    found = {reached(world, f"{how}{n}", how) for how in ("connect", "sendto") for n in range(6)}
    assert len(found) == 1


def test_a_pods_sockets_and_packets_share_the_entry(world: sockworld.World) -> None:
    """The key is the pod's address, found by the cookie of its namespace."""
    sockets_stick(world)
    reached(world, "first", "connect")
    ((other, _),) = world.tables["nn_affinity"].items()
    word = int.from_bytes(other.client.packed[:8], "little")
    assert word, "without an entry of nn_client the client is its namespace"
    world.tables["nn_affinity"].delete(other)
    v4, v6 = ip_address("10.0.0.7"), ip_address("fd00::7")
    world.tables["nn_client"].update(abi.ClientKey(word), abi.ClientEntry(v4, v6))
    own = abi.AffinityKey(v4 if world.version == 4 else v6, AFFINITY)
    try:
        for port in PORTS:
            world.tables["nn_affinity"].update(own, abi.AffinityEntry(port, now()))
            assert {reached(world, f"s{port}{n}{how}", how) for n in range(3) for how in ("connect", "sendto")} == {
                port
            }
    finally:
        world.tables["nn_client"].delete(abi.ClientKey(word))
