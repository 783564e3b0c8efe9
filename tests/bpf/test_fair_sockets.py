"""What a socket knows about its Services is its own: no number of other sockets can take it away."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet import abi
from nodenet.bpf import loader

from .conftest import Datapath, sock_world
from .sockworld import ONE, PORT, UDP, World

pytestmark = pytest.mark.kernel

SLOTS = 8  # NN_SOCK_ENDS


@pytest.fixture(scope="module")
def small(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    """The maps that held this before decision 0042 are small: the floods below would have filled them."""
    sizes = {"nn_sock_revnat": 64, "nn_sock_choice": 64}
    made = Datapath(bpffs / "fairsock", bpf_cache, loader.DatapathConfig(trace_events=False, sizes=sizes))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def world(small: Datapath, cgroup: Path, netns: str) -> Iterator[World]:
    small.reset()
    with sock_world(small, cgroup, netns, 4) as found:
        for port in (9001, 9002):
            found.server(port)
        found.serve(ONE, 9001, 9002)
        yield found


def extra_service(world: World, number: int, backend: int) -> str:
    """Another Service with one backend of its own. Returns its address."""
    address, port = f"10.96.1.{number}", 9100 + backend
    tables, found = world.tables, abi.AddressPort(ip_address(world.local), port, UDP)
    tables["nn_backend"].update(abi.U32(port), found)
    tables["nn_member"].update(abi.MemberKey(100 + number, port), found)
    tables["nn_revnat"].update(abi.U32(100 + number), abi.AddressPort(ip_address(address), PORT, UDP))
    slot, master = abi.FrontendEntry(port, 100 + number, 0), abi.FrontendEntry(0, 100 + number, 1)
    tables["nn_frontend"].update(abi.FrontendKey(ip_address(address), PORT, UDP, 1), slot)
    tables["nn_frontend"].update(abi.FrontendKey(ip_address(address), PORT, UDP, 0), master)
    return address


def ended(world: World) -> tuple[int, int]:
    """What sockets lost, and what could not be stored."""
    keys = (abi.MetricsKey.ended(abi.FairTable.SOCK, end) for end in (abi.EntryEnd.EVICTED, abi.EntryEnd.REFUSED))
    evicted, refused = (sum(cpu.packets for cpu in world.tables["nn_metrics"].get(key)) for key in keys)
    return evicted, refused


def test_a_flood_of_sockets_keeps_the_services_of_others(world: World) -> None:
    """Idle sockets: connected, and one that waits for an answer to a datagram of its own."""
    world.client("connected")
    world.process.do("connect", "connected", world.address(ONE), PORT)
    world.client("idle")
    world.ask("idle", ONE)
    for number in range(200):
        world.client(f"flood{number}")
        world.process.do("connect", f"flood{number}", world.address(ONE), PORT)
        world.client(f"datagrams{number}")
        world.ask(f"datagrams{number}", ONE)
    for _ in range(200):  # one socket, again and again
        world.process.do("connect", "flood0", world.address(ONE), PORT)
    assert world.process.do("peer", "connected") == [world.address(ONE), PORT]
    for port in (9001, 9002):  # each answers its first datagram: one of them is of `idle`
        world.process.do("answer", f"server{port}")
    assert world.process.do("receive", "idle") == ["ask", [world.address(ONE), PORT]]
    assert ended(world) == (0, 0)


def test_an_unconnected_socket_keeps_its_backend_during_a_flood(world: World) -> None:
    world.client("idle")
    world.ask("idle", ONE)
    first = next(port for port in (9001, 9002) if has_datagram(world, port))
    for number in range(200):
        world.client(f"s{number}")
        world.ask(f"s{number}", ONE)
    drain(world)
    for _ in range(20):
        world.ask("idle", ONE)
    assert has_datagram(world, first)
    assert not has_datagram(world, 9001 + 9002 - first)


def has_datagram(world: World, port: int) -> bool:
    try:
        world.process.do("receive", f"server{port}")
    except TimeoutError:
        return False
    return True


def drain(world: World) -> None:
    for port in (9001, 9002):
        while has_datagram(world, port):
            pass


def test_a_socket_with_many_services_loses_only_its_own_oldest_ones(world: World) -> None:
    world.client("other")
    world.ask("other", ONE)
    world.client("s")
    addresses = [extra_service(world, 1 + number, number) for number in range(SLOTS + 2)]
    for number, address in enumerate(addresses):
        world.server(9100 + number)
        world.process.do("sendto", "s", f"to {address}", address, PORT)
    assert ended(world) == (4, 0)  # two Services, each with its backend
    for number, address in enumerate(addresses):
        world.process.do("answer", f"server{9100 + number}")
        source = address if number >= 2 else world.local
        assert world.process.do("receive", "s")[1] == [source, PORT if number >= 2 else 9100 + number]
    port = next(port for port in (9001, 9002) if has_datagram(world, port))
    world.process.do("sendto", f"server{port}", "late", *world.process.do("own", "other"))
    assert world.process.do("receive", "other")[1] == [world.address(ONE), PORT]


def test_sockets_from_before_an_upgrade_keep_their_services(world: World) -> None:
    """Their entries were copied into the maps that nothing fills any more."""
    world.client("connected")
    world.process.do("connect", "connected", world.local, 9001)
    world.client("unconnected")
    connected, unconnected = (world.process.do("cookie", name) for name in ("connected", "unconnected"))
    backend = abi.SockRevnatKey(connected, ip_address(world.local), 9001, UDP)
    world.tables["nn_sock_revnat"].update(backend, abi.U32(ONE))
    assert world.process.do("peer", "connected") == [world.address(ONE), PORT]
    frontend = abi.SockRevnatKey(unconnected, ip_address(world.address(ONE)), PORT, UDP)
    world.tables["nn_sock_choice"].update(frontend, abi.U32(9002))
    for _ in range(20):
        world.ask("unconnected", ONE)
    assert has_datagram(world, 9002)
    assert not has_datagram(world, 9001)
    # Stored at the socket now.
    world.tables["nn_sock_choice"].delete(frontend)
    for _ in range(20):
        world.ask("unconnected", ONE)
    assert not has_datagram(world, 9001)
    # The socket calls another address: what it knew no longer applies.
    world.process.do("connect", "connected", world.local, 9002)
    world.process.do("connect", "connected", world.local, 9001)
    assert world.process.do("peer", "connected") == [world.local, 9001]
