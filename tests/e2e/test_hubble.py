"""Hubble's API as relay and generic clients use it, on a real lab of two nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from nodenet.lab import names
from nodenet.link import netns
from nodenet.rpc import schema
from nodenet.rpc.pb.observer import observer_pb2
from nodenet.rpc.pb.peer import peer_pb2
from nodenet.rpc.pb.reflection import reflection_pb2
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

OBJECTS: list[dict[str, Any]] = [
    *(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "stand-in", "ports": [{"containerPort": 8080}]}],
            },
        }
        for name, node in (("client", "node1"), ("server", "node2"))
    ),
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
    },
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file: Path = tmp_path_factory.mktemp("hubble") / "objects.yaml"
    file.write_text(yaml.safe_dump_all(OBJECTS))
    with running("hubble", "--nodes", "2", "--agent-set", "hubble_address=0.0.0.0:4244", "-f", file) as found:
        yield found


def target(lab: Lab, node: str = "node1") -> str:
    return f"unix:/run/nodenet/lab/{lab.name}/{node}/agent.sock"


def flows(lab: Lab, *words: str) -> list[dict[str, Any]]:
    done = nodenet("observe", "--lab", lab.name, "--all", "-o", "json", *words)
    return [json.loads(line)["flow"] for line in done.stdout.splitlines()]


def test_relay_finds_every_node(lab: Lab) -> None:
    async def peers() -> dict[str, str]:
        async with grpc.aio.insecure_channel(target(lab)) as channel:
            service = peer_pb2.DESCRIPTOR.services_by_name["Peer"]
            stream = schema.call(channel, service, "Notify")(peer_pb2.NotifyRequest())
            async with asyncio.timeout(20):
                found = [await stream.read() for _ in range(2)]
            stream.cancel()
            return {one.name: one.address for one in found}

    assert asyncio.run(peers()) == {
        f"{lab.name}/node1": "172.30.0.11:4244",
        f"{lab.name}/node2": "172.30.0.12:4244",
    }


def test_a_generic_client_finds_the_services(lab: Lab) -> None:
    async def listed() -> set[str]:
        async with grpc.aio.insecure_channel(target(lab)) as channel:
            service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
            stream = schema.call(channel, service, "ServerReflectionInfo")()
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await stream.read()
            await stream.done_writing()
            return {one.name for one in answer.list_services_response.service}

    assert {"observer.Observer", "peer.Peer", "grpc.health.v1.Health"} <= asyncio.run(listed())


def test_a_denied_packet_has_a_verdict_and_a_drop(lab: Lab) -> None:
    (server,) = lab.pods("default", "server")
    assert lab.fetch("default", "client", f"http://{server['status']['podIP']}:8080/") == ""
    words = ("--verdict", "DROPPED", "--to-pod", "default/server")

    def kinds() -> set[int]:
        return {flow["event_type"]["type"] for flow in flows(lab, *words)}

    until(lambda: kinds() == {1, 5}, "a drop and a verdict")
    verdicts = flows(lab, *words, "--type", "policy-verdict")
    assert verdicts
    for flow in verdicts:
        assert (flow["verdict"], flow["drop_reason_desc"]) == ("DROPPED", "POLICY_DENIED")
        assert [policy["name"] for policy in flow["ingress_denied_by"]] == ["closed"]
        assert flow["node_name"] == f"{lab.name}/node2"
        assert "kubernetes.io/hostname=node2" in flow["node_labels"]


def test_filters_as_hubble_reads_them(lab: Lab) -> None:
    assert flows(lab, "--from-label", "", "--to-pod", "default/server")
    assert flows(lab, "--cluster", lab.name)
    assert flows(lab, "--cluster", f"{lab.name[:2]}*") == []
    assert flows(lab, "--protocol", "igmp") == []


def test_the_probe_still_names_the_drop_once(lab: Lab) -> None:
    done = lab("probe", "--from", "default/client", "--to", "default/server", "--port", "8080", check=False)
    assert done.stdout.count("POLICY_DENIED") == 1
    assert "node2" in done.stdout


def test_the_mask_of_an_older_cli(lab: Lab) -> None:
    async def masked() -> Any:
        request = observer_pb2.GetFlowsRequest(number=1)
        request.experimental.field_mask.paths.extend(["verdict"])
        async with grpc.aio.insecure_channel(target(lab, "node2")) as channel:
            service = observer_pb2.DESCRIPTOR.services_by_name["Observer"]
            return [answer async for answer in schema.call(channel, service, "GetFlows")(request)]

    (answer,) = asyncio.run(masked())
    assert {field.name for field, _ in answer.flow.ListFields()} == {"verdict"}


def test_a_probe_names_a_stopped_agent_and_a_deleted_route(lab: Lab) -> None:
    (server,) = lab.pods("default", "server")
    words = ("probe", "--from", "default/client", "--to", "default/server", "--port", "8080")
    assert "no route" not in lab(*words, check=False).stdout
    lab("agent", "stop", "node1")
    try:
        netns.run(names.node_netns(lab.name, "node1"), ["ip", "route", "del", "10.244.2.0/24"], check=True)
        text = lab(*words, check=False).stdout
        assert "note: the agent of node1 is stopped: " in text
        assert f"note: node1 has no route to {server['status']['podIP']} via 172.30.0.12: " in text
    finally:
        lab("agent", "start", "node1")
