"""What Hubble relay and generic gRPC clients ask: peer.Peer and server reflection, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from nodenet.agent.peers import NodePeers
from nodenet.compile.state import LocalNode
from nodenet.config import Config
from nodenet.engine import Engine
from nodenet.model import Node
from nodenet.reconcile.grace import NoPrograms
from nodenet.rpc import schema
from nodenet.rpc.pb.peer import peer_pb2
from nodenet.rpc.pb.reflection import reflection_pb2
from nodenet.rpc.peer import changes
from nodenet.rpc.reflection import NAMES
from nodenet.store import Delta, Op, listings
from nodenet.testing import fake_tables
from tests.unit.rpc.conftest import World

ADDED, DELETED, UPDATED = peer_pb2.PEER_ADDED, peer_pb2.PEER_DELETED, peer_pb2.PEER_UPDATED
SERVICES = ("grpc.health.v1.Health", *NAMES, "nodenet.v1.Agent", "observer.Observer", "peer.Peer")


@pytest.fixture
async def channel(world: World) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{world.socket}") as connected:
        yield connected


async def ask(channel: Any, name: str = NAMES[0], **request: Any) -> Any:
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    stream = schema.call(channel, service, "ServerReflectionInfo", name)()
    await stream.write(reflection_pb2.ServerReflectionRequest(**request))
    answer = await stream.read()
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    return answer


@pytest.mark.parametrize("name", NAMES)
async def test_services_are_listed(channel: Any, name: str) -> None:
    answer = await ask(channel, name, list_services="", host="h")
    assert [service.name for service in answer.list_services_response.service] == sorted(SERVICES)
    assert (answer.valid_host, answer.original_request.host) == ("h", "h")


@pytest.mark.parametrize("name", SERVICES)
async def test_a_client_can_build_every_service_from_the_answer(channel: Any, name: str) -> None:
    """The files come with all that they need, so a client needs no files of its own."""
    answer = await ask(channel, file_containing_symbol=name)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in answer.file_descriptor_response.file_descriptor_proto
    ]
    pool, waiting = descriptor_pool.DescriptorPool(), {file.name: file for file in files}
    while waiting:
        ready = [file for file in waiting.values() if not waiting.keys() & set(file.dependency)]
        assert ready, f"missing: {sorted(waiting)}"
        for file in ready:
            pool.Add(waiting.pop(file.name))
    assert pool.FindServiceByName(name.replace("v1alpha", "v1")).methods


async def test_files_by_name_and_what_is_not_there(channel: Any) -> None:
    answer = await ask(channel, file_by_filename="flow/flow.proto")
    first = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert first.package == "flow"
    for request in (
        {"file_by_filename": "nothing.proto"},
        {"file_containing_symbol": "nothing.Nothing"},
        {"file_containing_symbol": "x" * 5000},
        {"all_extension_numbers_of_type": "flow.Flow"},
        {"file_containing_extension": {"containing_type": "flow.Flow", "extension_number": 1}},
        {},
    ):
        answer = await ask(channel, **request)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert len(answer.error_response.error_message) < 200


async def test_peers_come_and_go(world: World, channel: Any) -> None:
    world.peers.become(node1="10.0.0.1:4244", node2="10.0.0.2:4244")
    stream = schema.call(channel, peer_pb2.DESCRIPTOR.services_by_name["Peer"], "Notify")(peer_pb2.NotifyRequest())

    async def next_one() -> tuple[str, str, int]:
        async with asyncio.timeout(10):
            found = await stream.read()
        return found.name, found.address, found.type

    assert await next_one() == ("node1", "10.0.0.1:4244", ADDED)
    assert await next_one() == ("node2", "10.0.0.2:4244", ADDED)
    world.peers.become(node1="10.0.0.9:4244")
    assert await next_one() == ("node1", "10.0.0.9:4244", UPDATED)
    assert await next_one() == ("node2", "10.0.0.2:4244", DELETED)
    stream.cancel()


def test_equal_states_need_no_notification() -> None:
    assert changes({"a": "1"}, {"a": "1"}) == []


async def test_the_agents_peers_are_the_nodes() -> None:
    engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
    nodes = [
        Node("node2", (ip_address("fd00::2"),), network_unavailable="False"),
        # This agent runs, before it has reported that.
        Node("node1", (ip_address("10.0.0.1"),)),
        Node("no-address", network_unavailable="False"),
        Node("no-agent", (ip_address("10.0.0.7"),)),
        Node("agent-not-ready", (ip_address("10.0.0.8"),), network_unavailable="True"),
    ]
    engine.feed(*listings(nodes))
    peers = NodePeers(Config("node1", hubble_address="0.0.0.0:4244", cluster_name="blue"), engine)
    assert peers.peers() == {"blue/node1": "10.0.0.1:4244", "blue/node2": "[fd00::2]:4244"}
    change = peers.next_change()
    engine.feed(Delta(Op.ADDED, Node("node4", (ip_address("10.0.0.4"),), network_unavailable="False")))
    assert change.is_set()
    assert "blue/node4" in peers.peers()


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:4244", "127.1.2.3:4244", "[::1]:4244", "localhost:4244", "[::ffff:127.0.0.1]:4244"]
)
async def test_without_a_port_that_others_reach_the_only_peer_is_this_agent(address: str) -> None:
    engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
    nodes = [Node(f"node{n}", (ip_address(f"10.0.0.{n}"),), network_unavailable="False") for n in (1, 2)]
    engine.feed(*listings(nodes))
    peers = NodePeers(Config("node1", hubble_address=address), engine)
    assert peers.peers() == {"node1": "unix:///run/nodenet/agent.sock"}
