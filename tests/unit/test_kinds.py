"""The declarations fit each other and the Snapshot."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from nodenet.kinds import API_KINDS, BY_NAME, KINDS, ApiResource
from nodenet.store import Snapshot, Store


def test_every_field_of_a_snapshot_has_one_kind() -> None:
    places = [kind.place for kind in KINDS]
    assert ["revision", *places] == [field.name for field in fields(Snapshot)]
    assert Store().snapshot() == Snapshot()


def test_types_and_names_are_of_one_kind_each() -> None:
    assert len({kind.holds for kind in KINDS}) == len({kind.name for kind in KINDS}) == len(KINDS)
    assert BY_NAME.keys() == {kind.name for kind in API_KINDS}


def test_paths() -> None:
    policies = ApiResource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
    assert policies.path() == "/apis/networking.k8s.io/v1/networkpolicies"
    assert policies.path("shop", "deny", "status").endswith("/v1/namespaces/shop/networkpolicies/deny/status")
    assert policies.qualified == "networkpolicies.networking.k8s.io"
    assert policies.api_version == "networking.k8s.io/v1"
    nodes = ApiResource("", "v1", "Node", "nodes", namespaced=False)
    assert (nodes.path("ignored", "n1"), nodes.qualified, nodes.api_version) == ("/api/v1/nodes/n1", "nodes", "v1")


def test_the_documented_cluster_role_is_what_the_agent_reads() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rules = yaml.safe_load(page.partition("```yaml\nrules:")[2].partition("```")[0])
    reading = [rule for rule in rules if {"list", "watch"} & set(rule["verbs"])]
    granted = {(group, plural) for rule in reading for group in rule["apiGroups"] for plural in rule["resources"]}
    assert granted == {(kind.resource.group, kind.resource.plural) for kind in API_KINDS}
    assert {verb for rule in reading for verb in rule["verbs"]} == {"list", "watch"}
