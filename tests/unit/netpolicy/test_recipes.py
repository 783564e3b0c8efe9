"""examples/policies: the engine gives every verdict of the recipes' truth tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from netpolicy.cluster import Cluster
from netpolicy.ends import connections, parse_traffic
from netpolicy.evaluate import Evaluator
from netpolicy.lint import lint
from netpolicy.objects import cluster

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "policies"
RECIPES = sorted(path.stem for path in FOLDER.glob("[0-9]*.yaml"))


def read(recipe: str) -> Cluster:
    files = [FOLDER / "cluster.yaml", FOLDER / f"{recipe}.yaml"]
    return cluster([obj for file in files for obj in yaml.safe_load_all(file.read_text())])


def table(recipe: str) -> list[list[str]]:
    lines = (FOLDER / f"{recipe}.table").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def test_each_has_a_table() -> None:
    assert len(RECIPES) == 36
    assert sorted(path.stem for path in FOLDER.glob("*.table")) == RECIPES
    listed = (FOLDER / "README.md").read_text()
    assert all(f"]({recipe}.yaml)" in listed for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_truth_table(recipe: str) -> None:
    given = read(recipe)
    evaluator = Evaluator.of(given)
    rows = table(recipe)
    assert len(rows) >= 3
    computed = []
    for source, destination, port, _ in rows:
        verdicts = {
            evaluator.verdict(each.source, each.destination, each.traffic).allowed
            for each in connections(given, source, destination, parse_traffic(port))
        }
        assert len(verdicts) == 1
        computed.append([source, destination, port, "allow" if verdicts.pop() else "deny"])
    assert computed == rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_needs_each_policy(recipe: str) -> None:
    """Without any policy some row is wrong: a table of rows that are always allowed tests nothing."""
    given = read(recipe)
    if "-tier-" in recipe:
        # Some row needs the ClusterNetworkPolicy, and if there are NetworkPolicies, some row needs them.
        kept = [given.policies, *([given.cluster_policies] if given.policies else [])]
        assert all(_wrong(recipe, Evaluator(policies, given.namespaces, given.nodes)) for policies in kept)
        return
    if "allow" in recipe:
        assert len(given.policies) == 2
        evaluator = Evaluator([p for p in given.policies if not p.name.startswith("allow")], given.namespaces)
    else:
        evaluator = Evaluator((), given.namespaces)
    assert _wrong(recipe, evaluator)


def _wrong(recipe: str, evaluator: Evaluator) -> list[list[str]]:
    """The rows of a table that these policies do not give."""
    given = read(recipe)
    return [
        row
        for row in table(recipe)
        for each in connections(given, row[0], row[1], parse_traffic(row[2]))
        if evaluator.verdict(each.source, each.destination, each.traffic).allowed != (row[3] == "allow")
    ]


# What a recipe is for, although lint warns of it.
MEANT = {
    "01-default-deny-ingress": set(),
    "02-default-deny-egress": {"egress-without-dns"},
    "03-default-deny-both": {"egress-without-dns"},
    "04-allow-all-ingress": {"wide-rule"},
    "05-allow-all-egress": {"wide-rule"},
    "22-no-metadata-address": {"block-covers-pods"},
    "31-tier-no-metadata-address": {"egress-without-dns"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_lint_finds_no_mistake(recipe: str) -> None:
    assert {finding.check for finding in lint(read(recipe))} == MEANT.get(recipe, set())
