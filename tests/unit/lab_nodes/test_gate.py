"""The gate from the view of a client, over real sockets. 127.0.1.x represents node1, 127.0.2.x node2."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest

from nodenet.lab import layout
from nodenet.lab.api_trouble import ApiTrouble, Event, Mode
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.lab.gate import Gate, networks_of
from nodenet.lab.troubles import Troubles

NODES = {"node1": [ip_network("127.0.1.0/24")], "node2": [ip_network("127.0.2.0/24")]}
NODE1, NODE2 = "127.0.1.1", "127.0.2.1"
BOTH = ["node1", "node2"]
PODS = "/api/v1/namespaces/default/pods"
ESTABLISHED, SYN_SENT = 1, 2


@dataclass
class Lab:
    api: ApiServer
    gate: Gate
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    async def connect(self, node: str = NODE1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address, local_addr=(node, 0))

    async def get(self, path: str = "/version", node: str = NODE1) -> int:
        """The HTTP status of a request on a connection of its own."""
        reader, writer = await self.connect(node)
        try:
            ask(writer, path)
            return await answer(reader)
        finally:
            writer.close()


def ask(writer: asyncio.StreamWriter, path: str = "/version") -> None:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def answer(reader: asyncio.StreamReader) -> int:
    """The status. A body of known length is read as well."""
    head = await reader.readuntil(b"\r\n\r\n")
    if length := re.search(rb"Content-Length: (\d+)", head):
        await reader.readexactly(int(length[1]))
    return int(head.split()[1])


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    gate = Gate(NODES)
    api = ApiServer(refuse=gate.refuse)
    # Bind to an explicit port, as the lab does: Linux releases a port that it chose itself when the socket stops
    # listening.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.setblocking(False)
    async with asyncio.timeout(20), serve(api) as server, gate.serve(server.accept, [sock]):
        yield Lab(api, gate, port)


def tcp_info(sock: Any) -> tuple[int, int]:
    """(state, retransmissions so far) of struct tcp_info."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return data[0], struct.unpack_from("=I", data, 100)[0]


async def until(condition: Callable[[], bool]) -> None:
    """An event of the kernel for which there is no notification."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("host", "node"),
    [
        ("172.30.0.12", "node2"),
        ("fd00:172:30::b", "node1"),
        ("10.244.1.9", "node1"),
        ("fd00:10:244:2::5", "node2"),
        ("172.30.0.1", None),
        ("10.244.3.1", None),
    ],
)
def test_a_node_is_known_by_its_own_and_its_pods_addresses(host: str, node: str | None) -> None:
    plan = layout.plan("x", 2, layout.IPFamily.DUAL)
    assert Gate(networks_of(plan)).node_of(host) == node


async def test_without_trouble_the_gate_is_not_noticed(lab: Lab) -> None:
    assert await lab.get() == 200


async def test_away_for_all_is_a_refused_connection_and_a_reset_of_open_ones(lab: Lab) -> None:
    reader, writer = await lab.connect()
    ask(writer)
    assert await answer(reader) == 200
    await lab.gate.stage(BOTH, ApiTrouble(Mode.AWAY))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await lab.connect()
    await lab.gate.stage(BOTH, None)
    assert await lab.get() == 200


async def test_away_for_one_node_leaves_the_other(lab: Lab) -> None:
    await lab.gate.stage(["node1"], ApiTrouble(Mode.AWAY))
    with pytest.raises(ConnectionResetError):
        await lab.get()
    assert await lab.get(node=NODE2) == 200
    await lab.gate.stage(["node1"], None)
    assert await lab.get() == 200


async def test_hang_answers_old_and_new_connections_when_it_is_over(lab: Lab) -> None:
    old, old_writer = await lab.connect()
    ask(old_writer)
    assert await answer(old) == 200
    await lab.gate.stage(["node1"], ApiTrouble(Mode.HANG))
    new, new_writer = await lab.connect()
    ask(old_writer)
    ask(new_writer)
    # The other node's requests pass the same event loop later, and are answered.
    assert await lab.get(node=NODE2) == 200
    for each in (old_writer, new_writer):
        sock = each.get_extra_info("socket")
        assert tcp_info(sock) == (ESTABLISHED, 0)
    answers = [asyncio.create_task(answer(each)) for each in (old, new)]
    assert await lab.get(node=NODE2) == 200
    assert not any(each.done() for each in answers)
    await lab.gate.stage(["node1"], None)
    assert [await each for each in answers] == [200, 200]
    for each in (old_writer, new_writer):
        each.close()


async def test_what_is_asked_of_a_server_that_hangs_is_done_when_it_is_over(lab: Lab) -> None:
    await lab.gate.stage(["node1"], ApiTrouble(Mode.HANG))
    reader, writer = await lab.connect()
    body = b'{"metadata":{"name":"new"}}'
    head = f"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    await writer.drain()
    assert await lab.get("/api/v1/namespaces/new", NODE2) == 404
    await lab.gate.stage(["node1"], None)
    assert await answer(reader) == 201
    assert await lab.get("/api/v1/namespaces/new", NODE2) == 200
    writer.close()


async def test_blackhole_acknowledges_nothing(lab: Lab) -> None:
    old, old_writer = await lab.connect()
    ask(old_writer)
    assert await answer(old) == 200
    await lab.gate.stage(["node1"], ApiTrouble(Mode.BLACKHOLE))
    with socket.socket() as new:
        new.setblocking(False)
        new.bind((NODE1, 0))
        assert new.connect_ex(lab.address) == errno.EINPROGRESS
        assert tcp_info(new)[0] == SYN_SENT
        ask(old_writer)
        sock = old_writer.get_extra_info("socket")
        await until(lambda: tcp_info(sock)[1] > 0)
        assert tcp_info(sock)[0] == ESTABLISHED
        assert await lab.get(node=NODE2) == 200
        await lab.gate.stage(["node1"], None)
        # The kernel's own retransmissions get through.
        assert await answer(old) == 200
        await until(lambda: tcp_info(new)[0] == ESTABLISHED)
    old_writer.close()


async def test_a_blackhole_for_all_takes_new_connections_of_every_node(lab: Lab) -> None:
    await lab.gate.stage(BOTH, ApiTrouble(Mode.BLACKHOLE))
    with socket.socket() as new:
        new.setblocking(False)
        new.bind((NODE2, 0))
        new.connect_ex(lab.address)
        assert tcp_info(new)[0] == SYN_SENT


@pytest.mark.parametrize("trouble", [ApiTrouble(Mode.SLOW, latency=0.2), ApiTrouble(Mode.SLOW, rate=2000)])
async def test_slow_is_later_but_whole(lab: Lab, trouble: ApiTrouble) -> None:
    loop = asyncio.get_running_loop()
    await lab.gate.stage(["node1"], trouble)
    began = loop.time()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(NODE1, 0))) as session:
        async with session.get(f"http://127.0.0.1:{lab.port}/version") as response:
            body = await response.read()
        # At this rate the body alone takes that long, even without the headers.
        assert loop.time() - began >= (trouble.latency or len(body) / trouble.rate)
        assert json.loads(body)["gitVersion"]


async def test_the_end_of_slow_lets_go_what_waits(lab: Lab) -> None:
    await lab.gate.stage(["node1"], ApiTrouble(Mode.SLOW, latency=3600))
    reader, writer = await lab.connect()
    ask(writer)
    assert await lab.get(node=NODE2) == 200
    await lab.gate.stage(["node1"], None)
    assert await answer(reader) == 200
    writer.close()


async def test_a_server_that_waits_for_a_slow_client_does_not_fill_the_memory(lab: Lab) -> None:
    """A watch that cannot be written falls behind and gets 410, as with a real API server."""
    reader, writer = await lab.connect()
    ask(writer, f"{PODS}?watch=1")
    assert await answer(reader) == 200
    await lab.gate.stage(["node1"], ApiTrouble(Mode.HANG))
    (connection,) = lab.gate._connections
    for number in range(300):
        spec = {"containers": [{"name": "c", "image": "x" * 1000}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec": spec}
        await lab.api.client.create(pod)
        await asyncio.sleep(0)
    assert connection._outlet is not None
    assert 64 * 1024 < connection._outlet.waiting < 80 * 1024
    await lab.gate.stage(["node1"], None)
    for number in range(300):
        await reader.readuntil(f'"name":"p{number}"'.encode())
    writer.close()


async def test_errors_are_http_answers_to_one_node(lab: Lab) -> None:
    await lab.gate.stage(["node1"], ApiTrouble(Mode.ERROR, code=429))
    assert await lab.get() == 429
    assert await lab.get("/healthz") == 429
    assert await lab.get(node=NODE2) == 200


async def test_watches_are_cut_in_order_or_with_410(lab: Lab) -> None:
    troubles = Troubles(lab.api, lab.gate, dict.fromkeys(BOTH))  # type: ignore[arg-type]
    url = f"http://127.0.0.1:{lab.port}{PODS}?watch=1"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(NODE1, 0))) as session:
        for event, expected in ((Event.CUT_WATCHES, b""), (Event.EXPIRE, b'"code":410')):
            async with session.get(url) as response:
                assert await troubles.api_event({"nodes": ["node2"], "event": event}) == 0
                assert await troubles.api_event({"nodes": ["node1"], "event": event}) == 1
                text = await response.read()
                assert expected in text
                assert text or not expected
        old = lab.api.storage.version
        await lab.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
        await troubles.api_event({"event": Event.EXPIRE})
        stale = f"http://127.0.0.1:{lab.port}/api/v1/namespaces?watch=1&resourceVersion={old}"
        async with session.get(stale) as response:
            assert b'"code":410' in await response.read()


async def test_reset_ends_connections_once(lab: Lab) -> None:
    reader, writer = await lab.connect()
    ask(writer, f"{PODS}?watch=1")
    assert await answer(reader) == 200
    assert lab.gate.reset(["node2"]) == 0
    assert lab.gate.reset(["node1"]) == 1
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert await lab.get() == 200


async def test_what_waits_follows_the_newest_trouble(lab: Lab) -> None:
    await lab.gate.stage(["node1"], ApiTrouble(Mode.SLOW, latency=3600))
    reader, writer = await lab.connect()
    ask(writer)
    assert await lab.get(node=NODE2) == 200
    await lab.gate.stage(["node1"], ApiTrouble(Mode.SLOW, latency=0.01, rate=1_000_000))
    assert await answer(reader) == 200
    writer.close()
