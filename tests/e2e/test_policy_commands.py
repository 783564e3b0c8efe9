"""`nodenet policy` with a running lab: its API as a cluster, and its flows as the source of policies."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.labs import NODENET, SHOP, Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

CALLS = (("web-", "api"), ("api-", "orders"))


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """The shop without its policies."""
    files = [word for name in ("namespaces", "services", "workloads") for word in ("-f", str(SHOP / f"{name}.yaml"))]
    with running("suggest", *files, "--nodes", "2") as lab:
        yield lab


def call_all(lab: Lab) -> None:
    for prefix, service in CALLS:
        pod = lab.pods("shop", prefix)[0]["metadata"]["name"]
        assert lab.fetch("shop", pod, f"http://{service}.shop/").startswith(f"{service}-")


def recorded(lab: Lab, file: Path, *options: str) -> list[dict[str, object]]:
    file.write_text(nodenet("observe", "--lab", lab.name, "-o", "json", *options).stdout)
    return [json.loads(line)["flow"] for line in file.read_text().splitlines()]


def test_the_labs_api_is_a_cluster(bare: Lab) -> None:
    kubeconfig = bare("kubeconfig").stdout.strip()
    found = nodenet("policy", "matrix", "--kubeconfig", kubeconfig, "-o", "json")
    assert json.loads(found.stdout) == json.loads(nodenet("policy", "matrix", "--lab", bare.name, "-o", "json").stdout)
    assert len(json.loads(found.stdout)["results"]) == 140
    assert "warning" not in found.stderr


def test_suggested_policies_let_the_same_calls_pass_and_no_others(bare: Lab, tmp_path: Path) -> None:
    call_all(bare)
    flows, policies = tmp_path / "flows.json", tmp_path / "policies.yaml"

    def complete() -> bool:
        recorded(bare, flows, "--all")
        rows = json.loads(nodenet("policy", "suggest", "--flows", flows, "-o", "json", check=False).stdout or "{}")
        seen = {(row["from"], row["to"]) for row in rows.get("connections", ())}
        return {("shop/web", "shop/api"), ("shop/api", "shop/orders")} <= seen

    until(complete, "both calls are in the flows")
    policies.write_text(nodenet("policy", "suggest", "--lab", bare.name, "--flows", flows).stdout)
    bare("apply", "-f", policies)
    web, api = (bare.pods("shop", prefix)[0]["metadata"]["name"] for prefix in ("web-", "api-"))
    until(lambda: bare.fetch("shop", api, "http://web.shop/") == "", "the policies are in force")
    call_all(bare)
    assert bare.fetch("shop", web, "http://orders.shop/") == ""
    probe = nodenet("lab", "probe", "--name", bare.name, "--matrix", "--compare", "--timeout", "0.5", check=False)
    assert "0 differ" in probe.stdout + probe.stderr
    diff = nodenet("policy", "diff", "--lab", bare.name, "--instead", policies, "--flows", flows)
    assert "0 would be cut" in diff.stdout


def test_commands_start_in_one_pod_at_the_same_time(bare: Lab) -> None:
    """Each needs a file of its own for the pod's /etc/hosts."""
    pod = bare.pods("shop", "web-")[0]["metadata"]["name"]
    command = [*NODENET, "lab", "exec", "--name", bare.name, "-n", "shop", pod, "--", "true"]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(16)]
    assert [(done.communicate()[1], done.returncode) for done in started] == [("", 0)] * 16
