"""Sockets of UDP Services whose backends come and go: real sockets in a throwaway cgroup and network namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet import abi
from nodenet.bpf import loader
from tests.sockclient import SocketProcess

from .conftest import Datapath

pytestmark = pytest.mark.kernel

LOCAL = {4: "127.0.0.1", 6: "::1"}
ONE, TWO = 1, 2
SERVICES = {4: {ONE: "10.96.0.10", TWO: "10.96.0.11"}, 6: {ONE: "fd00:96::10", TWO: "fd00:96::11"}}
PORT, UDP = 53, 17


class World:
    """Servers on ports of the loopback, Services in front of them, and a process that asks."""

    def __init__(self, datapath: Datapath, process: SocketProcess, version: int) -> None:
        self.tables = datapath.tables
        self.process = process
        self.version = version
        self.local = LOCAL[version]
        self._slots: dict[int, tuple[int, ...]] = {}

    def address(self, service: int, mapped: bool = False) -> str:
        return ("::ffff:" if mapped else "") + SERVICES[self.version][service]

    def server(self, port: int) -> None:
        self.process.do("udp", f"server{port}", self.local, port)

    def serve(self, service: int, *ports: int, draining: tuple[int, ...] = ()) -> None:
        """The Service's backends from now on, written in the agent's order. A backend's number is its port, and none is
        ever removed: another Service may have it."""
        address, tables = ip_address(SERVICES[self.version][service]), self.tables
        for port in (*ports, *draining):
            backend = abi.AddressPort(ip_address(self.local), port, UDP)
            tables["nn_backend"].update(abi.U32(port), backend)
            tables["nn_member"].update(abi.MemberKey(service, port), backend)
        tables["nn_revnat"].update(abi.U32(service), abi.AddressPort(address, PORT, UDP))
        for slot, port in enumerate(ports, 1):
            entry = abi.FrontendEntry(port, service, 0)
            tables["nn_frontend"].update(abi.FrontendKey(address, PORT, UDP, slot), entry)
        tables["nn_frontend"].update(abi.FrontendKey(address, PORT, UDP, 0), abi.FrontendEntry(0, service, len(ports)))
        for port in set(self._slots.get(service, ())) - {*ports, *draining}:
            tables["nn_member"].delete(abi.MemberKey(service, port))
        self._slots[service] = (*ports, *draining)

    def ask(self, name: str, service: int, mapped: bool = False) -> None:
        self.process.do("sendto", name, "ask", self.address(service, mapped), PORT)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath, cgroup: Path, netns: str) -> Iterator[World]:
    loader.attach_cgroup(datapath.loaded, cgroup, datapath.pins)
    with ExitStack() as stack:
        stack.callback(lambda: [link.unlink() for link in datapath.pins.links.iterdir()])
        yield World(datapath, stack.enter_context(SocketProcess(netns, cgroup)), request.param)


@pytest.fixture
def asked(world: World) -> World:
    """Two servers; both Services have the first one; the socket `s` has asked Service one."""
    for port in (9001, 9002):
        world.server(port)
    world.serve(ONE, 9001)
    world.serve(TWO, 9001)
    world.process.do("udp", "s", None, 0, world.version)
    world.ask("s", ONE)
    assert world.process.do("receive", "server9001")[0] == "ask"
    return world


def test_datagrams_leave_a_backend_that_left_their_service_alone(asked: World) -> None:
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("answer", "server9002") == "ask"
    assert asked.process.do("receive", "s") == ["ask", [asked.address(ONE), PORT]]
    asked.ask("s", TWO)
    assert asked.process.do("receive", "server9001")[0] == "ask"


def test_a_service_that_lost_its_last_backend_refuses(asked: World) -> None:
    asked.serve(ONE)
    with pytest.raises(ConnectionRefusedError):
        asked.ask("s", ONE)
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"


def test_datagrams_stay_with_a_backend_that_finishes_its_work(asked: World) -> None:
    asked.serve(ONE, 9002, draining=(9001,))
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9001")[0] == "ask"
    asked.process.do("udp", "new", None, 0, asked.version)
    asked.ask("new", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"
    asked.serve(ONE, 9002)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9002")[0] == "ask"


def test_datagrams_stay_with_a_backend_whose_slot_moved(asked: World) -> None:
    for port in (9003, 9004):
        asked.server(port)
    asked.serve(ONE, 9002, 9003, 9001, 9004)
    asked.serve(ONE, 9004, 9001)
    asked.ask("s", ONE)
    assert asked.process.do("receive", "server9001")[0] == "ask"


def test_a_mapped_address_of_an_ipv6_socket_leaves_too(datapath: Datapath, cgroup: Path, netns: str) -> None:
    loader.attach_cgroup(datapath.loaded, cgroup, datapath.pins)
    try:
        with SocketProcess(netns, cgroup) as process:
            world = World(datapath, process, 4)
            for port in (9001, 9002):
                world.server(port)
            process.do("udp", "s", None, 0, 6)
            for backend in (9001, 9002):
                world.serve(ONE, backend)
                world.ask("s", ONE, mapped=True)
                assert process.do("answer", f"server{backend}") == "ask"
                assert process.do("receive", "s") == ["ask", [world.address(ONE, mapped=True), PORT]]
    finally:
        for link in datapath.pins.links.iterdir():
            link.unlink()
