"""A real gRPC server on a unix socket, fed with scripted events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet.abi import Event
from nodenet.errors import BadInputError
from nodenet.flow.filter import Origin
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.flow.types import NameTable, Party, PolicyMatch, PolicyName
from nodenet.pulse import Pulse
from nodenet.rpc.client import Client
from nodenet.rpc.feed import Feed
from nodenet.rpc.observer import ServerInfo
from nodenet.rpc.server import Server

WEB, DB = ip_address("10.0.0.1"), ip_address("10.0.0.2")
NOW = 1_700_000_000_000_000_000
CAPACITY = 64
NAMES = NameTable(
    addresses={
        WEB: Party(300, "shop", "web-1", ("k8s:app=web",), endpoint_id=1),
        DB: Party(301, "shop", "db-0", ("k8s:app=db",), endpoint_id=2),
    },
    rules={55: PolicyName("shop", "let-web", "ingress[0]", PolicyMatch.L3_L4)},
    isolated_by={(301, 1): (PolicyName("shop", "let-web"), PolicyName("shop", "deny-all"))},
)
BASE = Event(
    type=5, point=0, size=160, reason=0, time=0, cookie=77, saddr=WEB, daddr=DB, sport=40000, dport=5432,
    protocol=6, direction=1, ct_status=0, tcp_flags=2, icmp_type=0, icmp_code=0, endpoint_id=2, src_identity=300,
    dst_identity=301, rule_id=55, service_id=0, ifindex=5, length=74, src_mac="02:00:00:00:00:01",
    dst_mac="02:00:00:00:00:02", ip_version=4, is_reply=0,
)  # fmt: skip


@dataclass
class ScriptedProvider:
    """What agent.py would tell."""

    well: bool = True
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        return {"node": "node-1", "healthy": self.well, "address": WEB}

    def rows(self, resource: str, name: str = "", key: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        yield from self.tables.get(resource, [])

    def explain(self, source: str, destination: str, port: int, protocol: str) -> dict[str, Any]:
        if source == "shop/nobody":
            raise BadInputError("from: no pod shop/nobody", "nodenet endpoint list shows them")
        return {"from": source, "to": destination, "port": port, "protocol": protocol, "allowed": True}

    def healthy(self) -> bool:
        return self.well


@dataclass
class ScriptedPeers:
    """The nodes with an Observer."""

    known: dict[str, str] = field(default_factory=dict)
    pulse: Pulse = field(default_factory=Pulse)

    def peers(self) -> dict[str, str]:
        return self.known

    def next_change(self) -> asyncio.Event:
        return self.pulse.next()

    def become(self, **known: str) -> None:
        self.known = known
        self.pulse.fire()


@dataclass
class World:
    """One agent's server side, and the script's means to make flows."""

    feed: Feed
    provider: ScriptedProvider
    peers: ScriptedPeers
    socket: Path
    server: Server

    def see(self, **changes: Any) -> None:
        """One event; its time is its number in seconds after NOW."""
        event = BASE._replace(time=(self.feed.ring.seen + 1) * 1_000_000_000)._replace(**changes)
        self.feed.pipeline.receive(event.pack())
        self.feed.wake()


async def start_world(socket: Path, node: str = "node-1") -> World:
    provider = ScriptedProvider()
    origin = Origin(node, "blue", ("zone=a",), "0123456789abcdef0123")
    feed = Feed(Pipeline(Ring(CAPACITY), NOW, lambda: NAMES), origin)
    info = ServerInfo("0.1.0", "10.0.0.9", NOW, lambda: NOW + 10_000_000_000)
    peers = ScriptedPeers()
    server = Server(feed, provider, info, peers)
    await server.start(socket)
    return World(feed, provider, peers, socket, server)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    started = await start_world(tmp_path / "agent.sock")
    try:
        yield started
    finally:
        await started.server.stop()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[list[World]]:
    """Two agents whose sockets lie as a lab's do: <tmp>/<lab>/<node>/agent.sock."""
    worlds = []
    for node in ("node1", "node2"):
        folder = tmp_path / "blue" / node
        folder.mkdir(parents=True)
        (folder / "agent.yaml").touch()
        worlds.append(await start_world(folder / "agent.sock", node))
    try:
        yield worlds
    finally:
        for one in worlds:
            await one.server.stop()


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async with Client(str(world.socket)) as connected:
        yield connected


@pytest.fixture
def dropped() -> Callable[[], dict[str, Any]]:
    """Changes that make an event a drop by policy."""
    return lambda: {"type": 1, "reason": -133, "rule_id": 0}
