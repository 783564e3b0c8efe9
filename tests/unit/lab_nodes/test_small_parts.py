from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nodenet.config import parse
from nodenet.lab import agents, files, guard, layout, neighbours, nodes
from tests.unit.lab_nodes import objects as make


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", "its log is empty"),
        ("one\ntwo\n", "two"),
        ("x\nnodenet: map nn_ct: no room\n  hint: less\n", "map nn_ct: no room"),
    ],
)
def test_last_line_of_an_agents_log(log: str, expected: str) -> None:
    assert agents.last_line(log) == expected


def test_the_owner_of_a_real_connection_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        table = Path("/proc/net/tcp").read_text()
        assert guard.socket_owner(client.getsockname(), client.getpeername(), table) == os.getuid()
        assert guard.socket_owner(("127.0.0.1", 1), client.getpeername(), table) is None


def test_the_agents_configuration_is_one_that_the_agent_reads() -> None:
    lab = layout.plan("x", 1, layout.IPFamily.IPV4)
    config = parse(files.agent_config(files.LabState(lab, 24), lab.nodes[0]), "agent.yaml")
    assert config.node_name == "node1"
    assert config.run_dir == Path("/run/nodenet/lab/x/node1")


def test_a_node_has_its_networks_and_becomes_ready() -> None:
    lab = layout.plan("x", 1, layout.IPFamily.DUAL)
    node = nodes.node_object(lab, lab.nodes[0], "now", "b1")
    assert node["spec"]["podCIDRs"] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    addresses = [(entry["type"], entry["address"]) for entry in node["status"]["addresses"]]
    assert addresses == [("InternalIP", "172.30.0.11"), ("InternalIP", "fd00:172:30::b"), ("Hostname", "node1")]
    assert node["status"]["nodeInfo"]["bootID"] == "b1"
    assert node["status"]["conditions"][0]["status"] == "False"
    assert nodes.ready_condition(True, "now")["status"] == "True"


def test_a_small_matrix_is_one_wave_and_a_large_one_keeps_below_the_limit() -> None:
    pods = [make.pod(f"p{i}") for i in range(40)]
    for i, pod in enumerate(pods):
        pod["spec"]["nodeName"] = f"node{i % 2}"
    assert list(neighbours.waves(pods[:12], 1024)) == [pods[:12]]
    found = list(neighbours.waves(pods, 400))
    assert [pod for wave in found for pod in wave] == pods
    assert max(len(wave) for wave in found) * 2 * 19 <= 400 * 0.6
    assert list(neighbours.waves([], 1024)) == []


def test_one_pod_with_more_neighbours_than_room_still_gets_its_turn() -> None:
    pods = [make.pod(f"p{i}") for i in range(5)]
    assert [len(wave) for wave in neighbours.waves(pods, 2)] == [1] * 5
