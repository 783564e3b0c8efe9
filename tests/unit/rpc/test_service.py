"""The agent's own service, the health check, and the server's socket."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest

from nodenet.abi import Event
from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.rpc.client import Client, socket_path
from nodenet.rpc.observer import ServerInfo
from nodenet.rpc.pb.nodenet import agent_pb2
from nodenet.rpc.server import Server
from nodenet.rpc.service import Agent


async def test_status_is_what_the_provider_tells(world, client):
    assert await client.status() == {"node": "node-1", "healthy": True, "address": "10.0.0.1"}


async def test_lists_come_whole_however_long(world, client):
    world.provider.tables["ct"] = [{"n": n, "pad": "x" * 200} for n in range(30_000)]
    rows = await client.rows("ct")
    assert [row["n"] for row in rows] == list(range(30_000))
    assert len(await client.rows("ct", 3)) == 3
    assert await client.rows("map") == []


class LocalCall:
    """The context of a call on the unix socket."""

    def peer(self) -> str:
        return "unix:"

    def add_done_callback(self, _callback: object) -> None:
        pass


async def test_rows_are_read_while_they_are_sent(world):
    read: list[int] = []

    def rows(*_asked: object):
        for number in range(1_000_000):
            read.append(number)
            yield {"n": number}

    world.provider.rows = rows
    answers = Agent(world.feed, world.provider).List(agent_pb2.ListRequest(resource="map_dump"), LocalCall())
    assert len((await anext(answers)).rows) == len(read) == 500
    assert len((await anext(answers)).rows) == 500
    assert len(read) == 1000
    await answers.aclose()


async def test_an_error_in_the_middle_of_a_list_ends_it(world, client):
    def rows(*_asked: object):
        yield {"n": 1}
        raise BadInputError("the map is gone")

    world.provider.rows = rows
    with pytest.raises(BadInputError, match="the map is gone"):
        await client.rows("ct")


async def test_the_network_gets_flows_and_health_but_not_the_agents_service(world, tmp_path):
    info = ServerInfo("0.1.0", "10.0.0.9", 0, lambda: 0)
    server = Server(world.feed, world.provider, info, world.peers)
    port = await server.start(tmp_path / "other.sock", "127.0.0.1:0")
    try:
        async with Client(f"127.0.0.1:{port}") as remote:
            assert await remote.serving()
            assert (await remote.nodes()).nodes
            calls = (remote.status(), remote.rows("map"), remote.explain("a/b", "a/c", 80), anext(remote.monitor()))
            for call in calls:
                with pytest.raises(CannotRunError, match="served on the agent's unix socket only") as refused:
                    await call
                assert refused.value.hint == "run the command on the node"
    finally:
        await server.stop()


async def test_an_unknown_resource_is_refused(world, client):
    with pytest.raises(BadInputError, match="resource: unknown 'pods'"):
        await client.rows("pods")


async def test_explain_and_its_errors(world, client):
    assert (await client.explain("shop/web-1", "shop/db-0", 80))["protocol"] == "TCP"
    with pytest.raises(BadInputError, match="from: no pod shop/nobody") as caught:
        await client.explain("shop/nobody", "shop/db-0", 80)
    assert caught.value.hint == "nodenet endpoint list shows them"


async def test_health(world, client):
    assert await client.serving()
    assert await client.serving("")
    world.provider.well = False
    assert not await client.serving()
    with pytest.raises(NodenetError, match="is not served here"):
        await client.serving("something.Else")


async def test_monitor_gives_the_records_themselves(world, client):
    for _ in range(3):
        world.see()
    world.feed.pipeline.lost_in_kernel(2, 1)
    answers = [answer async for answer in client.monitor()]
    events = [Event.unpack(record) for answer in answers for record in answer.records]
    assert [event.time for event in events] == [1_000_000_000, 2_000_000_000, 3_000_000_000]
    assert sum(answer.lost.num_events_lost for answer in answers) == 2
    assert [len(a.records) async for a in client.monitor(number=1)] == [1, 0]


async def test_the_socket_of_a_killed_agent_is_taken_over(world, tmp_path):
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = Server(world.feed, world.provider, None, world.peers)
    await server.start(path)
    assert path.stat().st_mode & 0o777 == 0o600
    await server.stop()
    assert not path.exists()


async def test_a_living_agents_socket_is_not(world):
    second = Server(world.feed, world.provider, None, world.peers)
    with pytest.raises(CannotRunError, match="another agent listens here"):
        await second.start(world.socket)
    async with Client(str(world.socket)) as client:
        assert await client.serving()


async def test_a_path_that_is_too_long_says_so(world, tmp_path):
    server = Server(world.feed, world.provider, None, world.peers)
    with pytest.raises(CannotRunError, match="longer than the 107 bytes"):
        await server.start(tmp_path / ("x" * 120) / "agent.sock")


async def test_tcp_too(world, tmp_path):
    server = Server(world.feed, world.provider, None, world.peers)
    port = await server.start(tmp_path / "b.sock", "127.0.0.1:0")
    async with Client(f"127.0.0.1:{port}") as client:
        assert await client.serving()
    taken = Server(world.feed, world.provider, None, world.peers)
    with pytest.raises(CannotRunError, match=f"cannot listen on 127.0.0.1:{port}"):
        await taken.start(tmp_path / "c.sock", f"127.0.0.1:{port}")
    await server.stop()


async def test_an_unknown_call_is_unimplemented(world):
    async with grpc.aio.insecure_channel(f"unix:{world.socket}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/observer.Observer/GetDreams")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/run/a.sock", Path("/run/a.sock")),
        ("unix:///run/a.sock", Path("/run/a.sock")),
        ("unix:/run/a.sock", Path("/run/a.sock")),
        ("./a.sock", Path("a.sock")),
        ("localhost:4245", None),
        ("[::1]:4245", None),
    ],
)
def test_targets(target, expected):
    assert socket_path(target) == expected


@pytest.mark.parametrize("target", ["localhost", "a.sock", ""])
def test_targets_that_are_neither(target):
    with pytest.raises(BadInputError, match="expected a socket's path, unix:///path or host:port"):
        socket_path(target)
