"""What people see of Services: a flow names the Service whichever of its addresses was called, with the client's
address, and `service show` counts it. Real traffic, translated at the socket and packet by packet."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.lab import names
from nodenet.link import netns
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

NAMESPACE, TARGET = "view", 8080
PROXY = "127.0.0.1:10249"
EXTERNAL, BALANCER, NODE = "192.0.2.10", "192.0.2.20", "172.30.0.11"
# Each address has a Service of its own, so that its name tells which one was called.
KINDS = {"cluster": "ClusterIP", "node": "NodePort", "external": "ExternalIP", "balanced": "LoadBalancer"}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


def pod(name: str, node: str) -> dict[str, Any]:
    container = {"name": "c", "image": "stand-in", "ports": [{"containerPort": TARGET}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [container]},
    }


def service(name: str, app: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": TARGET}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": app}, "ports": ports, **spec},
    }


OBJECTS = [
    pod("client", "node1"),
    pod("web", "node2"),
    service("cluster"),
    service("node", type="NodePort", ports=[{"port": 80, "targetPort": TARGET, "nodePort": 30080}]),
    service("external", externalIPs=[EXTERNAL]),
    service("balanced", type="LoadBalancer"),
    service("empty", app="nothing"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file: Path = tmp_path_factory.mktemp("view") / "objects.yaml"
    file.write_text(yaml.safe_dump_all(OBJECTS))
    with running("view", "--nodes", "2", "--agent-set", f"proxy_metrics_address={PROXY}", "-f", file) as found:
        yield found


def address(lab: Lab, name: str) -> tuple[str, int]:
    if name in ("external", "balanced"):
        return (EXTERNAL if name == "external" else BALANCER), 80
    if name == "node":
        return NODE, 30080
    return lab.json("get", "svc", name, "-n", NAMESPACE)["spec"]["clusterIP"], 80


def by_socket(lab: Lab, target: tuple[str, int]) -> bool:
    return lab.exec(NAMESPACE, "client", "python3", "-c", CONNECT, *map(str, target), check=False).returncode == 0


def by_packet(lab: Lab, target: tuple[str, int]) -> bool:
    """A process in the pod's network, in no cgroup of the node."""

    def connect() -> bool:
        try:
            socket.create_connection(target, 3).close()
        except OSError:
            return False
        return True

    return netns.call(names.pod_netns(lab.name, NAMESPACE, "client"), connect)


def opened(lab: Lab) -> list[dict[str, Any]]:
    """The flows that the client's first packets made."""
    words = ("--from-pod", f"{NAMESPACE}/client", "--type", "policy-verdict", "--traffic-direction", "egress")
    done = nodenet("observe", "--lab", lab.name, "--node", "node1", "--all", "-o", "json", *words)
    return [json.loads(line)["flow"] for line in done.stdout.splitlines()]


def shown(lab: Lab, name: str) -> dict[str, Any]:
    done = nodenet("service", "show", f"{NAMESPACE}/{name}", "--lab", lab.name, "--node", "node1", "-o", "json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_address_is_named_and_counted(lab: Lab) -> None:
    patch = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}})
    config = lab("kubeconfig").stdout.strip()
    command = ["kubectl", "--kubeconfig", config, "patch", "service", "balanced", "-n", NAMESPACE]
    subprocess.run([*command, "--subresource=status", "-p", patch], check=True, capture_output=True)
    until(lambda: "LoadBalancer" in str(shown(lab, "balanced")["addresses"]), "the balancer's address is served")
    (client,) = lab.pods(NAMESPACE, "client")
    source = client["status"]["podIP"]
    for name, kind in KINDS.items():
        target = address(lab, name)
        for count, connect in enumerate((by_socket, by_packet), 1):
            assert connect(lab, target), f"{name}: {connect.__name__} {target}"
            until(lambda n=name, c=count: _named(lab, n) == [source] * c, f"{name}: {connect.__name__} is named")
        rows = {row["type"]: row for row in shown(lab, name)["addresses"]}
        assert {kind: row["opened"] for kind, row in rows.items() if row["opened"]} == {kind: 2}


def _named(lab: Lab, name: str) -> list[str]:
    """The client's addresses in the flows to this Service."""
    return [
        flow["IP"]["source"]
        for flow in opened(lab)
        if flow.get("destination_service") == {"name": name, "namespace": NAMESPACE}
    ]


def test_observe_prints_the_service(lab: Lab) -> None:
    assert by_socket(lab, address(lab, "external"))
    words = ("--lab", lab.name, "--node", "node1", "--from-pod", f"{NAMESPACE}/client")

    def printed() -> bool:
        return f"(via Service {NAMESPACE}/external)" in nodenet("observe", "--all", *words).stdout

    until(printed, "the line says via which Service")


def test_refused_calls_are_counted_and_the_backend_is_shown(lab: Lab) -> None:
    assert not by_socket(lab, address(lab, "empty"))
    until(lambda: shown(lab, "empty")["addresses"][0]["dropped"] == 1, "the refused call is counted")
    assert shown(lab, "empty")["backends"] == []
    (backend,) = shown(lab, "cluster")["backends"]
    assert (backend["pod"], backend["node"], backend["state"]) == (f"{NAMESPACE}/web", "node2", "ready")
    assert (backend["usedBy"], backend["unused"]) == (["ClusterIP"], {})
    lab("delete", "pod", "-n", NAMESPACE, "web")
    until(lambda: shown(lab, "cluster")["addresses"][0]["backends"] == [], "the backend leaves")


def test_kube_proxys_metrics_have_values_that_happened(lab: Lab) -> None:
    """The pods of this module started, so EndpointSlices changed, and the maps had them soon after."""

    def ask(path: str) -> str:
        def read() -> str:
            with urllib.request.urlopen(f"http://{PROXY}{path}", timeout=20) as answer:
                return str(answer.read().decode())

        return netns.call(names.node_netns(lab.name, "node1"), read)

    def values() -> dict[str, float]:
        lines = [line for line in ask("/metrics").splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    family = '{ip_family="IPv4"}'
    found = values()
    assert ask("/proxyMode") == "ebpf"
    assert found[f"kubeproxy_sync_full_proxy_rules_duration_seconds_count{family}"] >= 1
    assert found[f"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{family}"] >= 1
    measured = found[f"kubeproxy_network_programming_duration_seconds_count{family}"]
    assert measured >= 1
    assert 0 < found[f"kubeproxy_network_programming_duration_seconds_sum{family}"] / measured < 10
    assert found[f"kubeproxy_sync_proxy_rules_last_timestamp_seconds{family}"] > time.time() - 3600
    before = found["kubeproxy_sync_proxy_rules_endpoint_changes_total"]
    assert before >= 4
    lab("delete", "pod", "-n", NAMESPACE, "client")
    until(lambda: values()["kubeproxy_sync_proxy_rules_endpoint_changes_pending"] == 0, "nothing is pending")
    assert "nodenet_" not in ask("/metrics")


def test_an_unknown_service(lab: Lab) -> None:
    done = nodenet("service", "show", "nothing", "--lab", lab.name, check=False)
    assert (done.returncode, "there is no Service nothing" in done.stderr) == (2, True)
