"""What an agent does to its node and says about it: conflist, taint, condition, uplink, routes."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.client import LabClient
from nodenet.link import netns
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

POD = "{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: node1, containers: [{name: c, image: x}]}}"
CONFLIST = "10-nodenet.conflist"
NODE = BY_KIND["Node"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("net.d")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    keys = (f"node1:cni_conf_dir={folder}", "health_address=127.0.0.1:9911", "node1:masquerade_ipv4=true")
    options = [word for key in keys for word in ("--agent-set", key)]
    with running("start", "--nodes", "2", *options) as found:
        yield found


def node(lab: Lab) -> str:
    return f"nn.{lab.name}.node1"


def ip(where: str, *words: str) -> str:
    return subprocess.run(["ip", "-n", where, *words], check=True, capture_output=True, text=True).stdout


def status(lab: Lab) -> dict[str, object]:
    done = nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json", check=False)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_conflist_and_the_probes(lab: Lab, folder: Path) -> None:
    until((folder / CONFLIST).exists, "the agent is ready")
    for path, text in (("livez", "ok"), ("readyz", "ok")):
        done = netns.run(
            node(lab), ["curl", "-s", f"http://127.0.0.1:9911/{path}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == text
    lab("agent", "restart", "node1")
    assert (folder / CONFLIST).exists()


def test_taint_and_condition(lab: Lab) -> None:
    client = LabClient(lab.name)
    taints = [
        {"key": "node.nodenet.io/agent-not-ready", "effect": "NoSchedule"},
        {"key": "other", "effect": "NoSchedule"},
    ]
    unavailable = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    client.patch(NODE, "", "node1", {"spec": {"taints": taints}})
    client.patch(NODE, "", "node1", {"status": {"conditions": [unavailable]}}, "status")

    def reported() -> bool:
        found = client.get(NODE, "", "node1")
        conditions = {c["type"]: c for c in found["status"]["conditions"]}
        network = conditions.get("NetworkUnavailable", {})
        return (network.get("status"), network.get("reason")) == ("False", "NodenetIsUp") and [
            taint["key"] for taint in found["spec"]["taints"]
        ] == ["other"]

    until(reported, "the agent has reported its node")
    assert status(lab)["problems"] == []


def test_a_route_that_is_deleted_is_back_within_a_second(lab: Lab) -> None:
    for _ in range(3):
        ip(node(lab), "route", "del", "10.244.2.0/24")
        deleted = time.monotonic()
        until(lambda: "10.244.2.0/24" in ip(node(lab), "route"), "it is back", 1.0)
        assert time.monotonic() - deleted < 1.0
    # An interface that goes down takes its routes with it, and the kernel notifies of none of them.
    ip(node(lab), "link", "set", "eth0", "down")
    ip(node(lab), "link", "set", "eth0", "up")
    until(lambda: "10.244.2.0/24" in ip(node(lab), "route"), "it is back", 1.0)


def test_new_pods_have_the_uplinks_mtu(lab: Lab, tmp_path: Path) -> None:
    def add(name: str) -> str:
        (tmp_path / name).write_text(POD % name)
        lab("apply", "-f", tmp_path / name)
        until(lambda: lab.pods("default", name)[0].get("status", {}).get("podIP"), "the pod has a network")
        return lab.exec("default", name, "ip", "link", "show", "eth0").stdout.partition("mtu ")[2].split()[0]

    assert add("before") == "1500"
    ip(node(lab), "link", "set", "eth0", "mtu", "1400")
    try:
        until(lambda: (status(lab)["uplink"] or {}).get("mtu") == 1400, "the agent knows", 2.0)  # type: ignore[attr-defined]
        assert add("after") == "1400"
        assert "mtu 1400" in ip(node(lab), "link", "show", "cni0")
    finally:
        ip(node(lab), "link", "set", "eth0", "mtu", "1500")


def test_a_host_outside_sees_the_node_and_other_nodes_see_the_pod(lab: Lab, tmp_path: Path) -> None:
    """The fabric has no route to pods."""
    (tmp_path / "caller").write_text(POD % "caller")
    lab("apply", "-f", tmp_path / "caller")
    until(lambda: lab.pods("default", "caller")[0].get("status", {}).get("podIP"), "the pod has a network")
    call = "import socket, sys; socket.create_connection((sys.argv[1], 8099), 3).recv(1)"
    seen = []
    for place, address in (("fabric", "172.30.0.1"), ("node2", "172.30.0.12")):
        with netns.open_socket(f"nn.{lab.name}.{place}", socket.AF_INET, socket.SOCK_STREAM, 0) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, 8099))
            server.listen()
            server.settimeout(10)
            with ThreadPoolExecutor(1) as pool:
                calling = pool.submit(lab.exec, "default", "caller", "python3", "-c", call, address)
                connection, peer = server.accept()
                connection.sendall(b"x")
                connection.close()
                calling.result()
            seen.append(peer[0])
    assert seen == ["172.30.0.11", lab.pods("default", "caller")[0]["status"]["podIP"]]


def test_a_changed_node_address_reaches_routes_and_identities(lab: Lab) -> None:
    """Of the other node, and of this one."""
    client = LabClient(lab.name)

    def becomes(name: str, address: str) -> None:
        addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
        client.patch(NODE, "", name, {"status": {"addresses": addresses}}, "status")

    def identity(address: str) -> int | None:
        rows = json.loads(nodenet("ipcache", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
        return next((row["identity"] for row in rows if row["ip"].partition("/")[0] == address), None)

    def moves(name: str, old: str, new: str, wanted: int, route: str) -> None:
        where = f"nn.{lab.name}.{name}"
        ip(where, "address", "add", f"{new}/24", "dev", "eth0")
        try:
            becomes(name, new)
            until(lambda: identity(new) == wanted, "it has an identity", 5.0)
            until(lambda: route in ip(node(lab), "route"), "the route leads there", 5.0)
        finally:
            becomes(name, old)
            ip(where, "address", "del", f"{new}/24", "dev", "eth0")

    moves("node2", "172.30.0.12", "172.30.0.92", 6, "10.244.2.0/24 via 172.30.0.92")
    moves("node1", "172.30.0.11", "172.30.0.91", 1, "10.244.2.0/24 via 172.30.0.12")
    until(lambda: "10.244.2.0/24 via 172.30.0.12" in ip(node(lab), "route"), "all is as it was")


SERVICE = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}},
     spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
"""


def test_services_are_left_to_kube_proxy_and_taken_back(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "service").write_text(SERVICE)
    lab("apply", "-f", tmp_path / "service")
    config = Path("/run/nodenet/lab") / lab.name / "node1" / "agent.yaml"
    before = config.read_text()
    links = config.parent / "bpf" / "links"

    def served() -> bool:
        done = lab("probe", "--from", "web", "--to", "svc/web.default", "--port", "80", "--timeout", "1", check=False)
        return done.returncode == 0

    def frontends() -> int:
        found = json.loads(nodenet("map", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
        return int(next(entry for entry in found if entry["name"] == "nn_frontend")["entries"])

    until(served, "the Service is served")
    assert frontends() > 0
    try:
        config.write_text(before + "services: false\n")
        lab("agent", "restart", "node1")
        until(lambda: not list(links.iterdir()), "no socket program is attached")
        assert frontends() == 0
        assert not served()
        assert status(lab)["datapath"]["services"] is False  # type: ignore[index]
        # The integrity check puts nothing back.
        time.sleep(1.5)
        assert list(links.iterdir()) == []
    finally:
        config.write_text(before)
        lab("agent", "restart", "node1")
    until(served, "the Service is served again")
