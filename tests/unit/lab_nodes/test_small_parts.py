from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nodenet.config import parse
from nodenet.lab import agents, files, guard, layout, nodes


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it said nothing"),
        ("one\ntwo\n", "two"),
        ("x\nnodenet: map nn_ct: no room\n  hint: less\n", "map nn_ct: no room"),
    ],
)
def test_an_agents_last_words(log: str, words: str) -> None:
    assert agents.last_words(log) == words


def test_the_owner_of_a_real_connection_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        table = Path("/proc/net/tcp").read_text()
        assert guard.socket_owner(client.getsockname(), client.getpeername(), table) == os.getuid()
        assert guard.socket_owner(("127.0.0.1", 1), client.getpeername(), table) is None


def test_the_agents_configuration_is_one_that_the_agent_reads() -> None:
    lab = layout.plan("x", 1, layout.IPFamily.IPV4)
    config = parse(files.agent_config(lab, lab.nodes[0]), "agent.yaml")
    assert config.node_name == "node1"
    assert config.cni_socket == Path("/run/nodenet/lab/x/node1/cni.sock")


def test_a_node_tells_its_networks_and_becomes_ready() -> None:
    lab = layout.plan("x", 1, layout.IPFamily.DUAL)
    node = nodes.node_object(lab, lab.nodes[0], "now")
    assert node["spec"]["podCIDRs"] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    addresses = [(entry["type"], entry["address"]) for entry in node["status"]["addresses"]]
    assert addresses == [("InternalIP", "172.30.0.11"), ("InternalIP", "fd00:172:30::b"), ("Hostname", "node1")]
    assert node["status"]["conditions"][0]["status"] == "False"
    assert nodes.ready_condition(True, "now")["status"] == "True"
