"""The agent may die: what is in the kernel goes on, and the next start writes nothing that was right already."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.labs import NODENET, Lab, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

# One connection that stays open, and a new one to the Service each time; a line for each round, or the error.
TALK = """
import socket, sys, urllib.request
kept = socket.create_connection((sys.argv[1], 8000), timeout=2)
for line in sys.stdin:
    kept.sendall(b"ping")
    assert kept.recv(4) == b"ping"
    print(urllib.request.urlopen("http://api/", timeout=2).read().decode(), flush=True)
"""


def round_trip(talk: subprocess.Popen[str]) -> str:
    assert talk.stdin is not None
    assert talk.stdout is not None
    talk.stdin.write("\n")
    talk.stdin.flush()
    return talk.stdout.readline()


def test_connections_go_on_while_the_agents_are_dead_and_after(shop: Lab) -> None:
    web = shop.pods("shop", "web-")[0]
    other = next(p for p in shop.pods("shop", "api-") if p["spec"]["nodeName"] != web["spec"]["nodeName"])
    command = [*NODENET, "lab", "exec", "--name", shop.name, "-n", "shop", web["metadata"]["name"], "--"]
    argv = [*command, "python3", "-c", TALK, other["status"]["podIP"]]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talk:
        assert round_trip(talk).startswith("api-")
        for node in ("node1", "node2"):
            shop("agent", "kill", node)
        for _ in range(20):
            assert round_trip(talk).startswith("api-")
        until(lambda: shop("status", check=False).returncode == 0, "the agents are back")
        assert round_trip(talk).startswith("api-")
        talk.terminate()
    for node in ("node1", "node2"):
        ready = [line for line in shop.agent_log(node).splitlines() if "ready after" in line]
        assert "0 programs attached, 0 map writes" in ready[-1]
    assert shop("probe", "--matrix", "--compare", "--timeout", "0.5").returncode == 0


def test_a_pod_does_not_run_before_an_agent_polices_it(shop: Lab, tmp_path: Path) -> None:
    manifest = tmp_path / "late.yaml"
    manifest.write_text("{apiVersion: v1, kind: Pod, metadata: {name: late}, spec: {nodeName: node1, containers: "
                        "[{name: c, image: x}]}}")  # fmt: skip
    shop("agent", "stop", "node1")
    try:
        shop("apply", "-f", manifest)
        until(lambda: "the agent of node1 does not answer" in shop("status", check=False).stdout, "it says why")
        assert not shop.pods("default", "late")[0]["status"].get("podIP")
        shop("agent", "start", "node1")
        until(lambda: shop.pods("default", "late")[0]["status"].get("podIP"), "it runs")
    finally:
        shop("agent", "start", "node1")
        shop("delete", "pod", "late")
        until(lambda: not shop.pods("default"), "it is gone")
