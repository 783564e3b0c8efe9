"""The oracle's truth tables on real traffic: a sample of the cases, every pod to every pod, on two nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.labs import ROOT, Lab, running

pytestmark = pytest.mark.kernel

ORACLE = ROOT / "tests" / "data" / "networkpolicy" / "cases.jsonl"
# The kernels of the development machines have no SCTP; the pure engine checks those rows.
PORTS = "80/tcp,81/tcp,80/udp,81/udp"
SAMPLE = 12


def cases() -> list[dict[str, Any]]:
    """Cases whose pods and labels are the base ones (policies alone differ), without ipBlocks: those name the oracle's
    own pod addresses, which the pods of a lab do not have."""
    found = [json.loads(line) for line in ORACLE.read_text().splitlines()]
    base = next(case for case in found if case["id"] == min(c["id"] for c in found))["steps"][0]
    usable = [
        case
        for case in found
        if all(
            step["namespaces"] == base["namespaces"]
            and [p["labels"] for p in step["pods"]] == [p["labels"] for p in base["pods"]]
            and "ipBlock" not in json.dumps(step["policies"])
            for step in case["steps"]
        )
    ]
    return usable[:: max(1, len(usable) // SAMPLE)][:SAMPLE]


CASES = cases()


@pytest.fixture(scope="module")
def nine_pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Namespaces x, y, z with pods a, b, c, as every case has them."""
    step = CASES[0]["steps"][0]
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in step["namespaces"].items()
    ]
    for pod in step["pods"]:
        ports = [
            {"containerPort": number, "protocol": protocol, "name": name}
            for number, protocol, name in pod["ports"]
            if protocol != "SCTP"
        ]
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {key: pod[key] for key in ("namespace", "name", "labels")},
                "spec": {"containers": [{"name": "c", "image": "stand-in", "ports": ports}]},
            }
        )
    manifest = tmp_path_factory.mktemp("oracle") / "pods.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("oracle", "--nodes", "2", "-f", manifest) as lab:
        yield lab


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{c['id']}-{c['description'].replace(' ', '-')[:40]}") for c in CASES],
)
def test_real_connections_agree_with_the_truth_table(nine_pods: Lab, case: dict[str, Any], tmp_path: Path) -> None:
    for number, step in enumerate(case["steps"]):
        # The oracle's generator reuses names across namespaces; so does a cluster.
        manifest = tmp_path / f"step{number}.yaml"
        policies = [{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", **p} for p in step["policies"]]
        manifest.write_text(yaml.safe_dump_all(policies))
        if policies:
            nine_pods("apply", "-f", manifest)
        try:
            rows = nine_pods.json("probe", "--matrix", "--ports", PORTS)["results"]
        finally:
            if policies:
                nine_pods("delete", "-f", manifest)
        blocked = {(f, t, protocol, port) for f, t, protocol, port, *_ in step["blocked"] if protocol != "SCTP"}
        got = {(r["from"], r["to"], r["protocol"], r["port"]) for r in rows if not r["allowed"]}
        assert len(rows) == 9 * 8 * 4
        assert got == blocked
