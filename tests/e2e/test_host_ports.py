"""hostPorts of pods, on real sockets: from pods of this node and of another one, and from the node itself."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from tests.e2e.labs import NODENET, Lab, nodenet, running, until
from tests.sockclient import SocketProcess

from .test_services import NAMESPACE, TARGET, answer, error

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

PORT = 18080
CLIENTS = ("client", "host", "far")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
Clients = dict[str, SocketProcess]


def pod(name: str, *ports: dict[str, Any], protocols: tuple[str, ...] = ("TCP", "UDP"), **spec: Any) -> dict[str, Any]:
    listed = [{"containerPort": TARGET, "protocol": protocol, **port} for port in ports for protocol in protocols]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": "node2" if name == "far" else "node1",
            "containers": [{"name": "c", "image": "stand-in", "ports": listed}],
            **spec,
        },
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    sidecar = {"name": "s", "image": "stand-in", "restartPolicy": "Always"}
    sidecar["ports"] = [{"containerPort": TARGET, "hostPort": PORT + 3}]
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        pod("client"),
        pod("far"),
        pod("host", hostNetwork=True),
        pod("open", {"hostPort": PORT}),
        pod("inner", {"hostPort": PORT + 1, "hostIP": "127.0.0.1"}),
        pod("goes", {"hostPort": PORT + 2}),
        pod("sidecar", {}, initContainers=[sidecar]),
        pod("other", {"hostPort": PORT + 4}, protocols=("SCTP",)),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sctp", "namespace": NAMESPACE},
            "spec": {"selector": {"app": "none"}, "ports": [{"port": 132, "protocol": "SCTP"}]},
        },
    ]
    manifest = tmp_path_factory.mktemp("host-ports") / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("hostports", "--nodes", "2", "--ip-family", "dual", "-f", manifest) as found:
        yield found


@pytest.fixture(scope="module")
def clients(lab: Lab) -> Iterator[Clients]:
    command = [*NODENET, "lab", "exec", "--name", lab.name, "-n", NAMESPACE]
    with ExitStack() as stack:
        yield {name: stack.enter_context(SocketProcess([*command, name, "--"])) for name in CLIENTS}


@pytest.fixture(scope="module")
def node(lab: Lab) -> dict[int, str]:
    """Family -> the node's address."""
    found = next(item for item in lab.json("get", "nodes")["items"] if item["metadata"]["name"] == "node1")
    entries = [entry["address"] for entry in found["status"]["addresses"] if entry["type"] == "InternalIP"]
    return {6 if ":" in entry else 4: entry for entry in entries}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_host_port_on_the_nodes_address(clients: Clients, node: dict[int, str], client: str, family: int) -> None:
    """From a pod and from the node itself, and from a pod of another node."""
    assert answer(clients[client], node[family], PORT) == "open"


@pytest.mark.parametrize("family", [4, 6])
def test_the_loopback_of_the_node_has_it_and_that_of_a_pod_has_not(clients: Clients, family: int) -> None:
    assert answer(clients["host"], LOOPBACK[family], PORT) == "open"
    assert error(clients["client"], LOOPBACK[family], PORT) == errno.ECONNREFUSED


def test_host_ip(clients: Clients, node: dict[int, str]) -> None:
    assert answer(clients["host"], LOOPBACK[4], PORT + 1) == "inner"
    for client in CLIENTS:
        assert error(clients[client], node[4], PORT + 1) == errno.ECONNREFUSED


def test_a_sidecars_port(clients: Clients, node: dict[int, str]) -> None:
    clients["client"].do("tcp", "sidecar", node[4], PORT + 3)
    assert clients["client"].do("peer", "sidecar") == [node[4], PORT + 3]


def test_other_ports_of_the_node_stay_its_own(clients: Clients, node: dict[int, str]) -> None:
    clients["host"].do("listen", "own", node[4], PORT + 9)
    clients["client"].do("tcp", "to-own", node[4], PORT + 9)
    assert clients["client"].do("peer", "to-own") == [node[4], PORT + 9]


def test_it_goes_with_its_pod(lab: Lab, clients: Clients, node: dict[int, str]) -> None:
    assert answer(clients["client"], node[4], PORT + 2) == "goes"
    lab("delete", "pod", "goes", "-n", NAMESPACE)
    until(lambda: _refused(clients["client"], node[4], PORT + 2), "the port is the node's own again")
    assert not [row for row in _rows(lab) if row["service"] == f"Pod {NAMESPACE}/goes"]


def _refused(client: SocketProcess, address: str, port: int) -> bool:
    try:
        client.do("tcp", "again", address, port)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


def _rows(lab: Lab) -> list[dict[str, Any]]:
    text = nodenet("service", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout
    return [json.loads(line) for line in text.splitlines()] if text.startswith("{") else list(json.loads(text))


def test_what_is_shown(lab: Lab, node: dict[int, str]) -> None:
    rows = {(row["frontend"], row["protocol"]): row for row in _rows(lab)}
    row = rows[f"{node[4]}:{PORT}", "TCP"]
    assert (row["service"], row["type"], row["trafficPolicy"]) == (f"Pod {NAMESPACE}/open", "HostPort", "Local")
    assert len(row["backends"]) == 1
    text = nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout
    (status,) = json.loads(text) if text.startswith("[") else [json.loads(text)]
    status = status.get("agent", status)
    assert status["hostPorts"] == "agent"
    assert f"Pod {NAMESPACE}/other: hostPort {PORT + 4}: SCTP is not served" in status["notServed"]["first"]
    (service,) = [row for row in rows.values() if row["service"] == f"{NAMESPACE}/sctp"]
    assert service["notServed"] == ["spec.ports: port 132: SCTP is not served"]
    assert f"Service {NAMESPACE}/sctp: spec.ports: port 132: SCTP is not served" in lab.agent_log("node1")
    wanted = {("Pod", "other", "NotServed"), ("Service", "sctp", "NotServed")}
    until(lambda: wanted <= _events(lab), "the Events of the pod and of the Service")


def _events(lab: Lab) -> set[tuple[str, str, str]]:
    items = lab.json("get", "events", "-n", NAMESPACE)["items"]
    return {(e["involvedObject"]["kind"], e["involvedObject"]["name"], e["reason"]) for e in items}
