"""observer.Observer over a real connection."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from nodenet.errors import BadInputError, CannotRunError, NodenetError
from nodenet.flow.types import LostSource
from nodenet.rpc import schema
from nodenet.rpc.client import Client
from nodenet.rpc.observer import MAX_STREAMS
from nodenet.rpc.pb.flow import flow_pb2
from nodenet.rpc.pb.observer import observer_pb2

NOW = 1_700_000_000
ALL = (1 << 64) - 1


def request(**fields):
    return observer_pb2.GetFlowsRequest(**fields)


async def flows(client, **fields):
    return [answer async for answer in client.get_flows(request(**fields))]


def seconds(answers):
    return [answer.flow.time.seconds - NOW for answer in answers]


async def test_a_drop_says_who_why_and_by_which_policies(world, client, dropped):
    world.see(**dropped())
    verdict, answer = await flows(client, number=20)
    flow = answer.flow
    # Hubble shows the verdict of policy too. It differs in its kind and its number.
    assert (verdict.flow.event_type.type, verdict.flow.event_type.sub_type) == (5, 0)
    assert verdict.flow.uuid != flow.uuid
    other = flow_pb2.Flow()
    other.CopyFrom(verdict.flow)
    other.event_type.CopyFrom(flow.event_type)
    other.uuid = flow.uuid
    assert other == flow
    assert (flow.verdict, flow.drop_reason_desc) == (flow_pb2.DROPPED, flow_pb2.POLICY_DENIED)
    assert (flow.source.namespace, flow.source.pod_name) == ("shop", "web-1")
    assert (flow.destination.pod_name, flow.destination.ID) == ("db-0", 2)
    assert (flow.IP.source, flow.IP.ipVersion) == ("10.0.0.1", flow_pb2.IPv4)
    assert (flow.l4.TCP.destination_port, flow.l4.TCP.flags.SYN) == (5432, True)
    assert [(p.namespace, p.name, p.kind) for p in flow.ingress_denied_by] == [
        ("shop", "let-web", "NetworkPolicy"),
        ("shop", "deny-all", "NetworkPolicy"),
    ]
    assert (flow.event_type.type, flow.event_type.sub_type) == (1, 133)
    assert not flow.HasField("is_reply")
    # The cluster is not "default".
    assert (answer.node_name, flow.node_name, flow.Summary) == ("blue/node-1", "blue/node-1", "TCP Flags: SYN")
    assert list(flow.node_labels) == ["zone=a"]
    assert flow.traffic_direction == flow_pb2.INGRESS


async def test_an_allowed_connection_says_by_which_rule(world, client):
    world.see()
    (answer,) = await flows(client)
    assert [(p.name, list(p.labels)) for p in answer.flow.ingress_allowed_by] == [
        ("let-web", ["nodenet:rule=ingress[0]"])
    ]
    assert answer.flow.policy_match_type == 2
    assert answer.flow.is_reply.value is False


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"number": 2}, [4, 5]),
        ({"number": 2, "first": True}, [1, 2]),
        ({"number": ALL}, [1, 2, 3, 4, 5]),
        ({}, [1, 2, 3, 4, 5]),
        ({"since": {"seconds": NOW + 4}}, [4, 5]),
        ({"until": {"seconds": NOW + 2}}, [1, 2]),
        ({"since": {"seconds": NOW + 2}, "until": {"seconds": NOW + 4}, "number": 2}, [3, 4]),
        ({"whitelist": [{"destination_port": ["80"]}]}, [2, 4]),
        ({"blacklist": [{"destination_port": ["80"]}], "number": 1}, [5]),
        ({"whitelist": [{"source_pod": ["shop/web"], "destination_port": ["80"]}], "number": 1}, [4]),
        ({"whitelist": [{"tcp_flags": [{"SYN": True}]}], "number": 1}, [5]),
        ({"whitelist": [{"event_type": [{"type": 1}]}]}, []),
    ],
)
async def test_selection(world, client, fields, expected):
    for number in range(1, 6):
        world.see(dport=80 if number % 2 == 0 else 443)
    assert seconds(await flows(client, **fields)) == expected


async def test_following_gives_what_was_and_what_comes(world, client):
    for _ in range(3):
        world.see()
    stream = client.get_flows(request(number=1, follow=True))
    assert seconds([await anext(stream)]) == [3]
    world.see()
    world.see()
    assert seconds([await anext(stream), await anext(stream)]) == [4, 5]
    await stream.aclose()


async def test_following_without_a_number_begins_now(world, client):
    world.see()
    stream = client.get_flows(request(follow=True))
    first = asyncio.ensure_future(anext(stream))
    while not first.done():
        await asyncio.sleep(0.005)  # the server has to take up the call before what it shall show happens
        world.see()
    assert seconds([await first])[0] > 1
    await stream.aclose()


async def test_following_with_an_end_ends(world, client):
    world.see()
    answers = await flows(client, follow=True, number=1, until={"seconds": NOW + 10})
    assert seconds(answers) == [1]


async def test_a_reader_slower_than_the_ring_is_told_how_many_it_missed(world, client):
    world.see()
    stream = client.get_flows(request(number=1, follow=True))
    await anext(stream)
    for _ in range(500):  # in one go: the server's task has no chance to read in between
        world.feed.pipeline.receive(world_event(world))
    world.feed.wake()
    lost = (await anext(stream)).lost_events
    assert lost.source == LostSource.READER
    assert lost.num_events_lost == 500 - world.feed.ring.capacity
    assert (await anext(stream)).flow.verdict == flow_pb2.FORWARDED
    await stream.aclose()


def world_event(world):
    return world.feed.pipeline.records.at(world.feed.pipeline.records.end - 1)


async def test_losses_of_the_kernel_are_in_the_stream(world, client):
    world.see()
    world.feed.pipeline.lost_in_kernel(7, NOW * 10**9)
    world.feed.pipeline.lost_in_kernel(0, NOW * 10**9)
    _, lost = await flows(client)
    assert (lost.lost_events.source, lost.lost_events.num_events_lost) == (flow_pb2.PERF_EVENT_RING_BUFFER, 7)


async def test_a_field_mask_leaves_what_it_names(world, client):
    world.see()
    paths = ["time", "source.identity", "source.pod_name", "l4", "is_reply", "Summary", "node_name"]
    (answer,) = await flows(client, field_mask={"paths": paths})
    flow = answer.flow
    assert {field.name for field, _ in flow.ListFields()} == {
        "time", "source", "l4", "is_reply", "Summary", "node_name",
    }  # fmt: skip
    assert {field.name for field, _ in flow.source.ListFields()} == {"identity", "pod_name"}
    assert flow.l4.TCP.source_port == 40000


async def test_the_mask_of_hubble_1_16(world, client):
    """It is in another field."""
    world.see()
    (answer,) = await flows(client, experimental={"field_mask": {"paths": ["verdict", "source.pod_name"]}})
    assert {field.name for field, _ in answer.flow.ListFields()} == {"verdict", "source"}
    assert (answer.flow.source.pod_name, answer.flow.source.namespace) == ("web-1", "")


async def test_the_mask_that_the_hubble_cli_sends(world, client):
    ends = [f"{end}.{part}" for end in ("source", "destination") for part in ("identity", "namespace", "pod_name")]
    paths = [
        "time", "verdict", "ethernet", "IP", "l4", *ends, "Type", "node_name", "l7", "event_type", "source_service",
        "destination_service", "is_reply", "Summary", "ip_trace_id",
    ]  # fmt: skip
    world.see()
    (answer,) = await flows(client, field_mask={"paths": paths})
    assert answer.flow.destination.pod_name == "db-0"
    assert not answer.flow.destination.labels


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"whitelist": [{"source_ip": ["nonsense"]}]}, "source_ip: 'nonsense'"),
        ({"blacklist": [{"source_label": ["a in b"]}]}, "source_label: label selector"),
        ({"field_mask": {"paths": ["source.nose"]}}, "field_mask: flow.Flow has no field 'source.nose'"),
        ({"whitelist": [{"experimental": {"cel_expression": ["true"]}}]}, "cel_expression: CEL is not supported"),
    ],
)
async def test_a_request_that_cannot_be_followed_is_refused_by_name(world, client, fields, message):
    with pytest.raises(BadInputError, match=message):
        await flows(client, **fields)


async def server_status(world, headers=None):
    """What `hubble status` asks; no command of ours does. The answer's headers go into `headers`."""
    async with grpc.aio.insecure_channel(f"unix:{world.socket}") as channel:
        service = observer_pb2.DESCRIPTOR.services_by_name["Observer"]
        call = schema.call(channel, service, "ServerStatus")(observer_pb2.ServerStatusRequest())
        if headers is not None:
            headers.update(await call.initial_metadata())
        return await call


async def test_status_nodes_namespaces(world, client, dropped):
    for _ in range(3):
        world.see()
    status = await server_status(world)
    assert (status.num_flows, status.max_flows, status.seen_flows, status.version) == (3, 64, 3, "0.1.0")
    assert (status.num_connected_nodes.value, status.uptime_ns) == (1, 10_000_000_000)
    assert status.flows_rate == pytest.approx(0.3)
    (node,) = (await client.nodes()).nodes
    assert (node.name, node.state, node.seen_flows, node.tls.enabled) == ("blue/node-1", 1, 3, False)
    assert [(n.cluster, n.namespace) for n in (await client.namespaces()).namespaces] == [("blue", "shop")]


async def test_the_version_travels_in_a_header(world):
    headers = {}
    await server_status(world, headers)
    assert headers["hubble-server-version"] == "0.1.0"


@pytest.mark.parametrize("name", ["GetAgentEvents", "GetDebugEvents"])
async def test_what_is_not_recorded_says_so(world, name):
    async with grpc.aio.insecure_channel(f"unix:{world.socket}") as channel:
        service = observer_pb2.DESCRIPTOR.services_by_name["Observer"]
        message = getattr(observer_pb2, f"{name}Request")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in schema.call(channel, service, name)(message):
                pass
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "see" in (caught.value.details() or "")


async def test_many_readers_of_one_feed(world):
    async def read() -> list[int]:
        async with Client(str(world.socket)) as one:
            stream = one.get_flows(request(number=1, follow=True))
            found = [await anext(stream) for _ in range(3)]
            await stream.aclose()
            return seconds(found)

    world.see()
    readers = [asyncio.ensure_future(read()) for _ in range(5)]
    while not all(reader.done() for reader in readers):
        await asyncio.sleep(0.01)
        world.see()
    for reader in readers:
        found = reader.result()
        assert found == sorted(set(found))


async def test_nobody_there(tmp_path):
    missing = tmp_path / "agent.sock"
    async with Client(str(missing)) as nobody:
        with pytest.raises(CannotRunError, match=f"no socket {missing}"):
            await nobody.nodes()
    async with Client("127.0.0.1:1") as nobody:
        with pytest.raises(CannotRunError, match=r"no agent answers at 127\.0\.0\.1:1"):
            await flows(nobody)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"whitelist": [{"node_name": ["*" * 30 + "Z"] * 1025}]}, r"whitelist\[0\].node_name: 1025 values"),
        ({"blacklist": [{}] * 101}, "blacklist: 101 filters, at most 100"),
        ({"blacklist": [{}, {"source_label": ["," * 2000]}]}, "source_label: a value of 2000 characters"),
        ({"field_mask": {"paths": ["time"] * 257}}, "field_mask: 257 paths, at most 256"),
        ({"field_mask": {"paths": ["time." * 300]}}, "field_mask: a path of 1500 characters"),
        (
            {"field_mask": {"paths": ["x" * 200]}},
            r"field_mask: flow.Flow has no field 'x{64}'\.\.\. \(200 characters\)",
        ),
    ],
)
async def test_what_is_over_a_limit_is_refused_with_field_and_limit(client, fields, message):
    with pytest.raises(BadInputError, match=message):
        await flows(client, **fields)


async def test_a_hostile_pattern_is_answered_and_the_agent_goes_on(world, client):
    world.see()
    assert await flows(client, whitelist=[{"node_name": ["*" * 300 + "Z", "*-" * 200 + "Z"]}]) == []
    assert seconds(await flows(client, whitelist=[{"node_name": ["n*-*1"]}])) == [1]


async def test_a_request_that_is_too_large_is_refused_before_it_is_read(world, client):
    with pytest.raises(NodenetError, match="larger than max"):
        await flows(client, whitelist=[{"source_label": ["," * 1_000_000]}])
    world.see()
    assert seconds(await flows(client)) == [1]


async def test_streams_have_a_limit_and_the_place_of_one_that_ended_is_free(world, client):
    world.see()
    streams = [client.get_flows(request(number=1, follow=True)) for _ in range(MAX_STREAMS)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(NodenetError, match=f"GetFlows: {MAX_STREAMS} of these calls"):
        await flows(client)
    assert await client.serving(), "other calls have places of their own"
    await streams.pop().aclose()
    while True:  # the server learns of the end from the network
        try:
            assert seconds(await flows(client)) == [1]
            break
        except NodenetError:
            await asyncio.sleep(0.005)
    for stream in streams:
        await stream.aclose()
