"""ClusterNetworkPolicy in a lab: kubectl, status, Events, flows, nodes as peers, and its definition removed and applied
again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.lab.apiserver.installed import DEFINITIONS
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]
PODS = """
{apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}},
  spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node2, containers: [{name: c, image: x}]}}
"""
POLICY = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: closed}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: server}}}}
  ingress: [{name: no pods, action: Deny, from: [{namespaces: {}}]}]
  egress: [{action: Accept, to: [{domainNames: ["*.example.com"]}]}]
"""
OLD = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: old}
spec: {priority: 1}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifest = tmp_path_factory.mktemp("cnp") / "pods.yaml"
    manifest.write_text(PODS)
    with running("cnp", "--nodes", "2", "-f", manifest) as found:
        yield found


def write(folder: Path, text: str) -> Path:
    file = folder / "objects.yaml"
    file.write_text(text)
    return file


def status(lab: Lab) -> dict[str, Any]:
    return dict(json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout))


def test_a_policy_is_in_force_reported_and_explained(lab: Lab, tmp_path: Path) -> None:
    file = write(tmp_path, POLICY)
    address = lab.pods("default", "server")[0]["status"]["podIP"]
    assert lab.fetch("default", "client", f"http://{address}/") == "server"
    lab("apply", "-f", file)
    until(lambda: lab.fetch("default", "client", f"http://{address}/") == "", "it is in force")

    def condition() -> dict[str, Any]:
        (item,) = lab.json("get", "clusternetworkpolicies")["items"]
        (found,) = item.get("status", {}).get("conditions") or [{}]
        return dict(found)

    until(condition, "a node reports")
    assert (condition()["type"], condition()["status"]) == ("Accepted", "False")
    assert condition()["reason"] == "DomainNamesNotEnforced"
    assert "spec.egress[0].to[0].domainNames" in condition()["message"]
    until(lambda: "domainNames are not enforced" in lab("get", "events", "-A", "-o", "json").stdout, "an Event", 30)
    assert any("domainNames are not enforced" in problem for problem in status(lab)["problems"])

    told = lab("probe", "--from", "default/client", "--to", "default/server", "--port", "80", check=False).stdout
    assert "denied by a rule of the Admin tier, priority 7" in told
    assert "by ClusterNetworkPolicy closed spec.ingress[0] (no pods)" in told
    assert "POLICY_DENIED by ClusterNetworkPolicy closed" in told, "the agent's flow names the rule's policy"
    assert json.loads(lab("probe", "--matrix", "--compare", "-o", "json").stdout)["results"]

    bad = write(tmp_path, POLICY.replace("priority: 7", "priority: 1001"))
    refused = lab("apply", "-f", bad, check=False)
    assert refused.returncode != 0
    assert "spec.priority" in refused.stderr
    assert "ClusterNetworkPolicy supersedes AdminNetworkPolicy" in lab("apply", "-f", write(tmp_path, OLD)).stderr


def test_the_definition_goes_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    """Continues with the policy of the test before."""
    address = lab.pods("default", "server")[0]["status"]["podIP"]
    lab("delete", "customresourcedefinition", DEFINITIONS[0]["metadata"]["name"])
    until(lambda: lab.fetch("default", "client", f"http://{address}/") == "server", "nothing is denied")
    until(lambda: status(lab)["api"]["ClusterNetworkPolicy"]["state"] == "not installed", "the agent says so", 60)
    assert status(lab)["healthy"]
    lab("apply", "-f", write(tmp_path, f"{yaml.safe_dump(DEFINITIONS[0])}---{POLICY}"))
    until(lambda: lab.fetch("default", "client", f"http://{address}/") == "", "it is in force again", 45)
