"""Life on a real node: an API server that is away before and after the first sync, a peer that vanishes, and rules and
settings of others on the node."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nodenet.lab.api_trouble import ApiTrouble, Event, Mode
from nodenet.lab.client import LabClient
from nodenet.lab.staging import Staging
from nodenet.link import netns
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

WORLD = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node1, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: near, labels: {app: s}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: far, labels: {app: s}},
     spec: {nodeName: node2, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: s}, ports: [{port: 80}]}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("node") / "world.yaml"
    manifest.write_text(WORLD)
    with running("ntrouble", "--nodes", "2", "-f", manifest, "--agent-set", "resync_seconds=1") as found:
        yield found


@pytest.fixture
def stage(lab: Lab) -> Iterator[Staging]:
    staging = Staging(LabClient(lab.name))
    yield staging
    staging.clear()
    until(lambda: lab("status", check=False).returncode == 0, "all is as it was", 60)


def node(lab: Lab) -> str:
    return f"nn.{lab.name}.node1"


def sh(lab: Lab, script: str) -> str:
    done = netns.run(node(lab), ["sh", "-ec", script], capture_output=True, text=True, check=True)
    return str(done.stdout)


def probe(lab: Lab, path: str) -> tuple[int, str]:
    """What the kubelet's probe gets; 0 if nothing answers."""
    command = ["curl", "-s", "-m", "5", "-w", "\n%{http_code}", f"http://127.0.0.1:9910/{path}"]
    body, _, code = netns.run(node(lab), command, capture_output=True, text=True).stdout.rpartition("\n")
    return int(code), str(body)


def status(lab: Lab) -> dict[str, Any]:
    done = nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json", check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reached(lab: Lab, to: str) -> bool:
    words = ("probe", "--from", "client", "--to", to, "--port", "80", "--timeout", "1")
    return lab(*words, check=False).returncode == 0


def everything(lab: Lab) -> dict[str, bool]:
    return {to: reached(lab, to) for to in ("near", "far", "svc/s.default")}


ALL = {"near": True, "far": True, "svc/s.default": True}


def watched(lab: Lab) -> bool:
    """True if the watch of every kind runs. `healthy` allows a watch to fail for some seconds."""
    return all(kind["state"] == "watched" for kind in status(lab)["api"].values())


def test_an_api_server_that_is_away_before_the_first_sync(lab: Lab, stage: Staging) -> None:
    """The agent starts without it: alive, not ready, and what was in the kernel goes on."""
    with stage.api(Mode.AWAY, ["node1"]):
        lab("agent", "kill", "node1")
        until(lambda: probe(lab, "livez")[0] == 200, "the agent is back", 30)
        code, text = probe(lab, "readyz")
        assert code == 503
        assert "waiting for the first list of: Pod, Namespace, Node" in text
        assert everything(lab) == ALL
        time.sleep(2)
        assert probe(lab, "livez") == (200, "ok\n")
        assert probe(lab, "readyz")[0] == 503
    until(lambda: probe(lab, "readyz") == (200, "ok\n"), "it is ready", 30)
    assert everything(lab) == ALL


def test_an_api_server_that_is_away_after_the_first_sync(lab: Lab, stage: Staging) -> None:
    with stage.api(Mode.AWAY, ["node1"]):
        until(lambda: any(kind["error"] for kind in status(lab)["api"].values()), "the status says so")
        assert probe(lab, "livez") == (200, "ok\n")
        # A restart would not help, and the node still serves its pods.
        assert probe(lab, "readyz") == (200, "ok\n")
        assert everything(lab) == ALL
    until(lambda: status(lab)["healthy"], "it is well again", 30)


def test_a_peer_that_vanishes_is_noticed_within_a_minute(lab: Lab, stage: Staging) -> None:
    """No FIN, no RST: only TCP's probes tell."""
    with stage.api(ApiTrouble(Mode.BLACKHOLE), ["node1"]):
        began = time.monotonic()
        until(lambda: all(kind["error"] for kind in status(lab)["api"].values()), "every watch has noticed", 60)
        assert time.monotonic() - began < 60
    until(lambda: watched(lab), "all watches are back", 30)


def test_a_new_list_of_what_is_known_writes_nothing(lab: Lab, stage: Staging) -> None:
    # Only a watch that runs can expire.
    until(lambda: watched(lab), "all kinds are watched", 30)
    before = status(lab)
    lists = sum(kind["lists"] for kind in before["api"].values())
    stage.api_event(Event.EXPIRE, ["node1"])
    until(
        lambda: sum(kind["lists"] for kind in status(lab)["api"].values()) >= lists + len(before["api"]),
        "every kind is listed again",
        30,
    )
    time.sleep(1.5)
    after = status(lab)
    assert after["reconcile"]["writes"] == before["reconcile"]["writes"]
    assert after["reconcile"]["drift"] == before["reconcile"]["drift"]


@pytest.mark.parametrize(
    ("make", "accept", "remove", "command"),
    [
        (
            "nft 'add table ip filter'; nft 'add chain ip filter FORWARD { type filter hook forward priority 0;"
            " policy drop; }'",
            "nft add rule ip filter FORWARD ip saddr 10.244.0.0/16 accept",
            "nft delete table ip filter",
            "nft list chain ip filter FORWARD",
        ),
        (
            "iptables-legacy -P FORWARD DROP",
            "iptables-legacy -A FORWARD -s 10.244.0.0/16 -j ACCEPT",
            "iptables-legacy -F FORWARD; iptables-legacy -P FORWARD ACCEPT",
            "iptables-legacy -t filter -S FORWARD",
        ),
    ],
    ids=["nf_tables", "legacy"],
)
def test_a_forward_policy_that_drops_is_named(
    lab: Lab, stage: Staging, make: str, accept: str, remove: str, command: str
) -> None:
    def named() -> bool:
        return any(problem.endswith(command) for problem in status(lab)["problems"])

    assert not named()
    sh(lab, make)
    try:
        until(named, "the status names the rule", 5)
        # Other nodes are reached through the chain, pods of this node are not.
        assert everything(lab) | {"svc/s.default": True} == ALL | {"far": False}
        sh(lab, accept)
        assert everything(lab) == ALL
    finally:
        sh(lab, remove)
    until(lambda: not named(), "it is gone", 5)


def test_kube_proxy_that_comes_while_the_agent_serves_is_named(lab: Lab) -> None:
    def named() -> bool:
        return any("kube-proxy serves Services on this node too" in problem for problem in status(lab)["problems"])

    assert not named()
    sh(lab, "nft add table ip kube-proxy")
    try:
        until(named, "the status names it", 5)
    finally:
        sh(lab, "nft delete table ip kube-proxy")
    until(lambda: not named(), "it is gone", 5)


def test_bridged_packets_may_pass_iptables(lab: Lab) -> None:
    """bridge-nf-call-iptables=1, which kubeadm asks for, also with rules of others."""
    try:
        sh(lab, "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no br_netfilter")
    sh(lab, "iptables-nft -A FORWARD -s 10.244.0.0/16 -j ACCEPT")
    try:
        assert everything(lab) == ALL
        assert status(lab)["problems"] == []
    finally:
        sh(lab, "iptables-nft -F FORWARD; nft delete table ip filter")
        sh(lab, "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.mark.parametrize("value", [1, 2])
def test_reverse_path_filters_drop_no_packet_of_pods(lab: Lab, value: int) -> None:
    sh(lab, f"for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $f; done")
    try:
        assert everything(lab) == ALL
    finally:
        sh(lab, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
