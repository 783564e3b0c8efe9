"""An agent that replaces a map in a running node: what only the programs know goes over."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.e2e.labs import NODENET, Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

# `server` accepts calls and has no allowed destination.
WORLD = """
{apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}},
 spec: {nodeName: node1, containers: [{name: c, image: x}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, labels: {app: client}},
 spec: {nodeName: node1, containers: [{name: c, image: x}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""
# The server answers one datagram when a line comes. The agent is replaced before that. No packet of the client opens
# the flow again, and for a datagram no socket can tell who opened it.
SERVER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7000))
sock.settimeout(40)
print("bound", flush=True)
data, peer = sock.recvfrom(100)
print("asked", flush=True)
sys.stdin.readline()
sock.sendto(b"late " + data, peer)
sys.stdin.readline()
"""
CLIENT = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto(b"answer", (sys.argv[1], 7000))
sock.settimeout(40)
print(sock.recv(100).decode(), flush=True)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    manifest = tmp_path / "world.yaml"
    manifest.write_text(WORLD)
    with running("carried", "--nodes", "1", "-f", manifest) as lab:
        yield lab


@contextmanager
def started(lab: Lab, pod: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    argv = [*NODENET, "lab", "exec", "--name", lab.name, pod, "--", "python3", "-c", *command]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_an_answer_to_a_flow_from_before_the_switch_passes(lab: Lab) -> None:
    address = lab.pods("default", "server")[0]["status"]["podIP"]
    with started(lab, "server", SERVER) as server:
        assert line(server) == "bound"
        with started(lab, "client", CLIENT, address) as client:
            assert line(server) == "asked"
            config = Path("/run/nodenet/lab") / lab.name / "node1" / "agent.yaml"
            config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "ct_entries": 4096}))
            lab("agent", "restart", "node1")
            until(lambda: lab("status", check=False).returncode == 0, "the agent is back")
            assert server.stdin
            server.stdin.write("\n")
            server.stdin.flush()
            assert line(client) == "late answer"
    log = lab.agent_log("node1")
    assert "map nn_ct had another shape" in log
    assert "it starts empty" not in log, "only carried maps were replaced"
    listed = nodenet("map", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout
    assert {row["name"]: row["size"] for row in json.loads(listed)}["nn_ct"] == 4096
    assert not (config.parent / "bpf" / "maps-old").exists()
