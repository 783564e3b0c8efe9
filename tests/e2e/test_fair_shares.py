"""One tenant asks for more policy than the map holds: its own policy is left out and named, and nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.labs import Lab, nodenet, running, traces, until

WORLD = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: good}}
  - {apiVersion: v1, kind: Namespace, metadata: {name: evil}}
  - {apiVersion: v1, kind: Pod, metadata: {name: client, namespace: good, labels: {app: client}},
     spec: {nodeName: node1, containers: [{name: c, image: x}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: server, namespace: good, labels: {app: server}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: bad, namespace: evil, labels: {app: bad}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
"""
# The labels are new: the pod is a subject of its own.
LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: good, labels: {app: server, tier: late}}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
"""


def policy(namespace: str, peers: list[Any]) -> str:
    ingress = [{"from": peers, "ports": [{"port": 80}]}]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress}
    meta = {"name": "web", "namespace": namespace}
    return json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec})


CLIENTS = {"podSelector": {"matchLabels": {"app": "client"}}}
GREEDY = [{"namespaceSelector": {}}, *({"ipBlock": {"cidr": f"198.18.{n}.0/24"}} for n in range(100))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("shares") / "world.yaml"
    manifest.write_text(WORLD)
    with running("shares", "--nodes", "1", "-f", manifest, "--agent-set", "policy_entries=64") as found:
        yield found
    assert traces(found.name) == []


def status(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    return found


def allowed(lab: Lab, source: str, target: str) -> bool:
    words = ("--from", source, "--to", target, "--port", "80", "--timeout", "0.5")
    return lab("probe", *words, check=False).returncode == 0


def apply(lab: Lab, folder: Path, text: str) -> None:
    path = folder / "object.yaml"
    path.write_text(text)
    lab("apply", "-f", path)


def left_out(lab: Lab) -> list[tuple[str, str, int, int]]:
    return [(one["namespace"], one["policy"], one["needed"], one["limit"]) for one in status(lab)["leftOut"]]


def events(lab: Lab) -> set[tuple[str, str]]:
    """Type and reason of the Events about the policy of evil."""
    found = json.loads(lab("get", "events", "-n", "evil", "-o", "json").stdout)["items"]
    return {(one["type"], one["reason"]) for one in found if one["involvedObject"]["name"] == "web"}


def test_a_greedy_policy_closes_its_own_pods_alone(lab: Lab, tmp_path: Path) -> None:
    apply(lab, tmp_path, policy("good", [CLIENTS]))
    apply(lab, tmp_path, policy("evil", [{"namespaceSelector": {}}]))
    until(lambda: allowed(lab, "good/client", "evil/bad"), "the small policy of evil is in force")
    apply(lab, tmp_path, policy("evil", GREEDY))
    until(lambda: left_out(lab), "the policy of evil is named")
    ((namespace, name, needed, limit),) = left_out(lab)
    assert (namespace, name) == ("evil", "web")
    assert needed > 100 > 32 > limit
    found = status(lab)
    assert found["healthy"]
    assert any(
        problem.startswith("NetworkPolicy evil/web: its rules are not in force") for problem in found["problems"]
    )
    assert not allowed(lab, "good/client", "evil/bad")
    assert allowed(lab, "good/client", "good/server")
    assert not allowed(lab, "evil/bad", "good/server")
    # A pod that comes now has its policy: its ADD does not wait for the policies of others.
    apply(lab, tmp_path, LATE)
    assert allowed(lab, "good/client", "good/late")
    assert not allowed(lab, "evil/bad", "good/late")
    assert "NetworkPolicy evil/web: its rules are not in force" in lab.agent_log("node1")
    until(lambda: events(lab) == {("Warning", "RulesLeftOut")}, "an Event names it")
    # The same after a restart, and it opens again once it asks for less.
    before = left_out(lab)
    nodenet("lab", "agent", "restart", "node1", "--name", lab.name)
    words = ("status", "--lab", lab.name, "--node", "node1")
    until(lambda: nodenet(*words, check=False).returncode == 0, "the agent is back")
    assert left_out(lab) == before
    assert not allowed(lab, "good/client", "evil/bad")
    apply(lab, tmp_path, policy("evil", [{"namespaceSelector": {}}]))
    until(lambda: not left_out(lab) and allowed(lab, "good/client", "evil/bad"), "it is in force again")
    until(lambda: ("Normal", "RulesInForce") in events(lab), "an Event says so")
