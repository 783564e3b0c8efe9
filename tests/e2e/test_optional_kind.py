"""An agent on a node of a lab, with an optional kind: without its definition, with it, and without it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: testpolicies.policy.example.com}
spec:
  group: policy.example.com
  scope: Namespaced
  names: {plural: testpolicies, kind: TestPolicy}
  versions: [{name: v1alpha1, served: true, storage: true}]
"""
DENY = """
apiVersion: policy.example.com/v1alpha1
kind: TestPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
"""
PODS = """
{apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}},
  spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node1, containers: [{name: c, image: x}]}}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("optional_kind")))
    manifest = tmp_path / "pods.yaml"
    manifest.write_text(PODS)
    with running("optional", "--nodes", "1", "-f", manifest) as found:
        yield found


def status(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    return found


def seen(lab: Lab) -> tuple[str, int]:
    """What status says of the kind."""
    found = status(lab)
    return found["api"]["TestPolicy"]["state"], found["objects"]["policies"]


def test_a_definition_comes_and_goes(lab: Lab, tmp_path: Path) -> None:
    server = lab.pods("default", "server")[0]["status"]["podIP"]
    # `lab up` ended, so the agent had its first sync, and the pods run.
    assert status(lab)["healthy"]
    assert status(lab)["problems"] == []
    assert seen(lab) == ("not installed", 0)
    assert "state not installed" in nodenet("status", "--lab", lab.name, "--node", "node1").stdout
    assert lab.fetch("default", "client", f"http://{server}/") == "server"

    manifest = tmp_path / "policy.yaml"
    manifest.write_text(f"{DENY}---{DEFINITION}")
    lab("apply", "-f", manifest)
    assert "deny" in lab("get", "testpolicies").stdout
    until(lambda: seen(lab) == ("watched", 1), "the object is seen", 40)
    until(lambda: lab.fetch("default", "client", f"http://{server}/") == "", "it is in force")

    lab("delete", "customresourcedefinition", "testpolicies.policy.example.com")
    until(lambda: seen(lab) == ("not installed", 0), "it is gone")
    until(lambda: lab.fetch("default", "client", f"http://{server}/") == "server", "it is no longer in force")
