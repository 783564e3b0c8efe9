"""What another set of ClusterNetworkPolicies changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml
from click.testing import CliRunner

from netpolicy.cluster import ContainerPort
from netpolicy.diff import compare
from netpolicy.objects import cluster
from nodenet.cli.policy import policy as command

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "policies"


def test_a_deny_of_the_admin_tier_and_its_network() -> None:
    objects = [obj for name in ("cluster", "31-tier-no-metadata-address") for obj in read(name)]
    after = replace(cluster(objects), policies=())
    before = replace(after, cluster_policies=())
    changes = compare(before, after, [ContainerPort(80)]).changes
    assert changes
    assert {(change.destination, change.before, change.after) for change in changes} == {
        ("169.254.169.254", True, False)
    }


def read(name: str) -> list[object]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def test_with_and_without_a_cluster_network_policy() -> None:
    first = str(FOLDER / "cluster.yaml"), str(FOLDER / "33-tier-tenant-apart.yaml")
    added = CliRunner().invoke(command, ["diff", "-f", first[0], "--with", first[1]])
    assert added.exit_code == 1, added.output
    assert "other/client" in added.output
    both = ["diff", "-f", first[0], "-f", first[1]]
    gone = CliRunner().invoke(command, [*both, "--without", "ClusterNetworkPolicy/tenant-shop"])
    assert gone.exit_code == 1, gone.output
    assert "other/client" in gone.output
