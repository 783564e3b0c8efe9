"""The lookup chain of a packet as commands, on a real lab: maps, programs, events and leases in words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet import tables
from nodenet.bpf import loader
from tests.e2e.labs import Lab, nodenet, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

NODE = "node1"


def ask(lab: Lab, *words: str) -> Any:
    return json.loads(nodenet(*words, "--lab", lab.name, "--node", NODE, "-o", "json").stdout)


def test_every_map_is_listed(shop: Lab) -> None:
    rows = {row["name"]: row for row in ask(shop, "map", "list")}
    assert rows.keys() == tables.MAPS.keys()
    assert all(row["id"] for row in rows.values())
    assert rows["nn_endpoint"]["entries"] > 0
    assert rows["nn_state"]["fill"] is None
    assert rows["nn_events"]["entries"] is None
    assert rows["nn_frag"]["size"] == tables.FRAG.size.entries


def test_from_an_address_to_the_rule(shop: Lab) -> None:
    """As the programs find it: address, identity, rule."""
    rules = ask(shop, "map", "dump", "nn_policy")
    assert rules
    assert all(row["value"]["now"].startswith(("allow", "deny", "none")) for row in rules)
    endpoints = ask(shop, "endpoint", "list")
    wanted = {row["key"]["subject"].split()[0] for row in rules if row["key"]["direction"] == "ingress"}
    found = next(row for row in endpoints if str(row["identity"]) in wanted)
    assert found["labels"]
    (entry,) = ask(shop, "map", "get", "nn_ipcache", found["ips"][0])
    assert entry["value"]["now"].startswith(f"{found['identity']} (ns=")
    (endpoint,) = ask(shop, "map", "get", "nn_endpoint", f"addr={found['ips'][0]}")
    assert endpoint["value"]["endpoint_id"] == f"{found['id']} ({found['pod']})"
    rule = next(row for row in rules if row["key"]["subject"].split()[0] == str(found["identity"]))
    members = {name: str(value).split()[0] for name, value in rule["key"].items()}
    # A whole packet's key finds the rule by its longest prefix.
    protocol = "TCP" if members["protocol"] == "ANY" else members["protocol"]
    words = [f"{name}={members[name]}" for name in ("subject", "peer", "direction", "port")]
    (hit,) = ask(shop, "map", "get", "nn_policy", *words, f"protocol={protocol}")
    assert hit["value"]["now"] != "none"


def test_what_is_not_there(shop: Lab) -> None:
    where = ("--lab", shop.name, "--node", NODE)
    for words, code, text in (
        (("get", "nn_ipcache", "203.0.113.9"), 1, "no entry 203.0.113.9"),
        (("get", "nn_ipcache", "nonsense"), 2, "expected an IP address"),
        (("dump", "nn_frag"), 2, "cannot be read by key"),
        (("dump", "nn_nothing"), 2, "there is no such map"),
    ):
        done = nodenet("map", *words, *where, check=False)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_programs_and_where_they_are(shop: Lab) -> None:
    rows = ask(shop, "program", "list")
    endpoints = ask(shop, "endpoint", "list")
    on_pods = {(row["pod"], row["program"]) for row in rows if row["pod"]}
    assert on_pods == {(row["pod"], name) for row in endpoints for name in loader.TC_PROGRAMS}
    others = {row["program"]: row["hook"] for row in rows if not row["pod"]}
    assert others.keys() == {*loader.UPLINK_PROGRAMS, *loader.CGROUP_PROGRAMS}
    assert "cgroup" in others["sock_connect4"]
    assert {row["state"] for row in rows} == {"ok"}
    # Statistics cost every program of the machine: the test reads the switch and does not turn it.
    counted = Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip() == "1"
    assert all((row["runs"] is not None) is counted for row in rows)


def test_monitor_in_words(shop: Lab) -> None:
    (client, *_) = shop.pods("shop")
    shop.fetch("shop", client["metadata"]["name"], "http://198.51.100.1:9/")
    where = ("--lab", shop.name, "--no-follow")

    def kinds(*words: str) -> set[str]:
        lines = nodenet("monitor", *where, *words).stdout.splitlines()
        # The node's name, the time, the type.
        return {line.split()[2] for line in lines}

    until(kinds, "records")
    for kind in kinds():
        assert kinds("-t", kind) == {kind}


def test_leases_of_a_lab(shop: Lab) -> None:
    rows = json.loads(nodenet("cni", "leases", "--lab", shop.name, "-o", "json").stdout)
    leased = {(row["node"], row["address"]) for row in rows}
    pods = [pod for pod in shop.json("get", "pods", "-A")["items"] if not pod["spec"].get("hostNetwork")]
    assert leased == {(pod["spec"]["nodeName"], entry["ip"]) for pod in pods for entry in pod["status"]["podIPs"]}
    assert all(row["pod"] for row in rows)


def test_a_pod_that_does_not_start_has_events(shop: Lab, tmp_path: Path) -> None:
    container = {"name": "c", "image": "stand-in"}
    spec = {"containers": [container], "nodeSelector": {"disk": "none-has-it"}}
    manifest = tmp_path / "pod.yaml"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stuck", "namespace": "shop"}, "spec": spec}
    manifest.write_text(yaml.safe_dump(pod))
    shop("apply", "-f", manifest)
    config = shop("kubeconfig").stdout.strip()

    def described() -> bool:
        command = ["kubectl", "--kubeconfig", config, "describe", "pod", "stuck", "-n", "shop"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return "FailedScheduling" in text and "nodes are available" in text

    try:
        until(described, "kubectl describe shows why")
    finally:
        shop("delete", "pod", "stuck", "-n", "shop")
