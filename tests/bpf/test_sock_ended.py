"""Connected UDP sockets whose backend left their Service are ended, and no others."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from contextlib import suppress

import pytest

from nodenet.agent.sockets import Ended, Place, Sweep, sweep
from nodenet.link import netns as namespaces

from .sockworld import ONE, PORT, TWO, UDP, World

pytestmark = pytest.mark.kernel


def look(world: World, netns: str) -> Sweep:
    """What the agent does after a change."""
    place = Place("pod default/client", str(namespaces.path_of(netns)))
    return sweep([place], dict(world.tables["nn_member"].items()), world.peers)


def connected(world: World, name: str) -> bool:
    with suppress(OSError):
        return bool(world.process.do("peer", name))
    return False


@pytest.fixture
def two(any_world: World) -> World:
    """Services ONE and TWO with the same two backends, of which 9001 is always the one that is chosen."""
    for port in (9001, 9002):
        any_world.server(port)
    for service in (ONE, TWO):
        any_world.serve(service, 9001)
    return any_world


def test_it_is_told_and_can_connect_again(two: World, netns: str) -> None:
    two.client("s")
    two.process.do("connect", "s", two.address(ONE), PORT)
    assert look(two, netns).ended == {}
    two.serve(ONE, 9002)
    found = look(two, netns)
    ((ended, count),) = found.ended.items()
    assert (ended.owner, ended.service_id, ended.backend.port, count) == ("pod default/client", ONE, 9001, 1)
    with pytest.raises(ConnectionAbortedError):
        two.process.do("receive", "s")
    with pytest.raises(OSError, match=r"send\(") as unconnected:
        two.process.do("send", "s", "ask")
    assert unconnected.value.errno == errno.EDESTADDRREQ
    two.process.do("connect", "s", two.address(ONE), PORT)
    two.process.do("send", "s", "ask")
    assert two.process.do("answer", "server9002") == "ask"
    assert two.process.do("receive", "s") == ["ask", [two.address(ONE), PORT]]
    assert look(two, netns) == Sweep()


LEAVE: dict[str, Callable[[World], None]] = {
    "another Service still has it": lambda world: world.serve(ONE, 9002),
    "no backend is left": lambda world: world.serve(ONE),
    "the Service is gone": lambda world: world.remove(ONE),
    "it is gone": lambda world: (world.serve(ONE, 9002), world.serve(TWO, 9002))[0],
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE.keys())
def test_whatever_took_the_backend_away(two: World, netns: str, leave: Callable[[World], None]) -> None:
    two.client("s")
    two.process.do("connect", "s", two.address(ONE), PORT)
    leave(two)
    assert look(two, netns).ended.total() == 1
    assert not connected(two, "s")


@pytest.fixture
def device(netns: str) -> str:
    """A device in the client's namespace with a route to FAR."""
    name = "away0"
    for arguments in (
        ("link", "add", name, "type", "veth", "peer", "name", "away1"),
        ("link", "set", "away1", "up"),
        ("addr", "add", "198.51.100.1/24", "dev", name),
        ("addr", "add", "2001:db8:9::1/64", "dev", name, "nodad"),
        ("link", "set", name, "up"),
    ):
        subprocess.run(["ip", "-n", netns, *arguments], check=True)
    return name


FAR = {4: "198.51.100.9", 6: "2001:db8:9::9"}


def test_a_socket_that_is_bound_to_a_device(any_world: World, netns: str, device: str) -> None:
    world = any_world
    world.local = FAR[world.version]
    world.serve(ONE, 9001)
    for name in ("bound", "stays", "free"):
        world.client(name)
        if name != "free":
            world.process.do("device", name, device)
        world.process.do("connect", name, *((world.backend(), 9001) if name == "stays" else (world.address(ONE), PORT)))
    assert look(world, netns) == Sweep()
    world.serve(ONE, 9002)
    assert look(world, netns).ended.total() == 2
    assert [connected(world, name) for name in ("bound", "stays", "free")] == [False, True, False]


def test_a_device_that_is_gone_holds_up_no_other_socket(any_world: World, netns: str, device: str) -> None:
    world = any_world
    world.local = FAR[world.version]
    world.serve(ONE, 9001)
    for name in ("bound", "free"):
        world.client(name)
        if name == "bound":
            world.process.do("device", name, device)
        world.process.do("connect", name, world.address(ONE), PORT)
    subprocess.run(["ip", "-n", netns, "link", "del", device], check=True)
    world.serve(ONE, 9002)
    found = look(world, netns)
    assert found.failed == ()
    assert not connected(world, "free")


def test_others_stay(two: World, netns: str) -> None:
    """The other Service's, one that connected to the pod itself, one of another backend, one that is not connected."""
    for name in ("other", "direct", "again", "unconnected"):
        two.client(name)
    two.process.do("connect", "other", two.address(TWO), PORT)
    two.process.do("connect", "direct", two.backend(), 9001)
    # This one called the Service first, with the same socket.
    two.process.do("connect", "again", two.address(ONE), PORT)
    two.process.do("connect", "again", two.backend(), 9001)
    two.ask("unconnected", ONE)
    two.serve(ONE, 9002)
    two.client("new")
    two.process.do("connect", "new", two.address(ONE), PORT)
    assert look(two, netns) == Sweep()
    assert all(connected(two, name) for name in ("other", "direct", "again", "new"))
    two.ask("unconnected", ONE)
    assert two.process.do("receive", "server9002")[0] == "ask"
    # No Service has the backend any more: those that no Service brought there still stay.
    two.serve(TWO, 9002)
    assert look(two, netns).ended.total() == 1
    assert [connected(two, name) for name in ("other", "direct", "again", "new")] == [False, True, True, True]


def test_a_backend_that_finishes_its_work_keeps_its_sockets(two: World, netns: str) -> None:
    two.client("s")
    two.process.do("connect", "s", two.address(ONE), PORT)
    two.serve(ONE, 9002, draining=(9001,))
    assert look(two, netns) == Sweep()
    assert connected(two, "s")


def test_tcp_is_left_alone(datapath: object, world: World, netns: str) -> None:
    """As under kube-proxy: its peer or a timeout ends it."""
    world.process.do("listen", "server", world.local, 9001)
    world.serve(ONE, 9001, protocol=6)
    world.process.do("tcp", "s", world.address(ONE), PORT)
    world.serve(ONE, 9002, protocol=6)
    assert look(world, netns) == Sweep()
    assert connected(world, "s")


def test_one_namespace_that_cannot_be_looked_at_holds_up_no_other(two: World, netns: str, tmp_path: object) -> None:
    two.client("s")
    two.process.do("connect", "s", two.address(ONE), PORT)
    two.serve(ONE)
    places = [
        Place("pod default/gone", f"{tmp_path}/none"),
        Place("pod default/broken", str(tmp_path)),
        Place("pod default/client", str(namespaces.path_of(netns))),
    ]
    found = sweep(places, dict(two.tables["nn_member"].items()), two.peers)
    assert {ended.owner for ended in found.ended} == {"pod default/client"}
    (problem,) = found.failed
    assert problem.startswith("UDP sockets of pod default/broken could not be listed")


def test_the_agents_own_namespace_is_one_of_the_places(two: World, netns: str) -> None:
    """hostNetwork pods and the node's processes."""
    two.client("s")
    two.process.do("connect", "s", two.address(ONE), PORT)
    two.serve(ONE)
    members, peers = dict(two.tables["nn_member"].items()), two.peers
    found = namespaces.call(netns, sweep, [Place("node node1", None)], members, peers)
    ((ended, _),) = found.ended.items()
    assert isinstance(ended, Ended)
    assert (ended.owner, ended.backend.protocol) == ("node node1", UDP)
