"""Services for processes that the socket programs do not see: in a pod's network, but in no cgroup of its node, as the
processes behind a virtual machine's or gVisor's sandbox are. Real traffic through both nodes, in both families."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.lab import names
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

NAMESPACE = "outside"
PORT, TARGET, SILENT = 80, 8080, 8081
FAMILIES = (4, 6)
# Connects, looks who it is connected to, and has its data sent back; UDP in fragments too.
CLIENT = """
import json, socket, sys, threading
found = {}
def ask(name, kind, address, port, size):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    out = found.setdefault(name, {})
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        data = b"\\0" + bytes(range(256)) * (size // 256)
        try:
            sock.connect((address, port))
            out["peer"] = list(sock.getpeername()[:2])
            sock.sendall(data)
            received = b""
            while len(received) < len(data):
                received += sock.recv(65536)
            out["same"] = received == data
        except OSError as error:
            out["error"] = type(error).__name__
threads = [threading.Thread(target=ask, args=question) for question in json.loads(sys.argv[1])]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(found))
"""


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    ports = [{"containerPort": TARGET, "protocol": protocol} for protocol in ("TCP", "UDP")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name, **labels}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "stand-in", "ports": ports}]},
    }


def service(name: str, target: int = TARGET, app: str = "") -> dict[str, Any]:
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "targetPort": target}
        for protocol in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": app or name}, "ipFamilyPolicy": "RequireDualStack", "ports": ports},
    }


# The client may call 8080 and 8081 of open pods: the ports behind its Services, not the 80 that it asks for.
EGRESS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "client", "namespace": NAMESPACE},
    "spec": {
        "podSelector": {"matchLabels": {"app": "client"}},
        "policyTypes": ["Egress", "Ingress"],
        "egress": [
            {
                "to": [{"podSelector": {"matchLabels": {"open": "yes"}}}],
                "ports": [{"port": TARGET, "endPort": SILENT, "protocol": protocol} for protocol in ("TCP", "UDP")],
            }
        ],
    },
}
PLACES = ("near", "far")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        pod("client", "node1"),
        pod("near", "node1", open="yes"),
        pod("far", "node2", open="yes"),
        pod("near-shut", "node1"),
        pod("far-shut", "node2"),
        *(service(name) for name in ("client", "near", "far", "near-shut", "far-shut")),
        *(service(f"{name}-silent", SILENT, name) for name in PLACES),
        service("nobody"),
        EGRESS,
    ]
    manifest = tmp_path_factory.mktemp("outside") / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("outside", "--nodes", "2", "--ip-family", "dual", "-f", manifest) as found:
        yield found


@pytest.fixture(scope="module")
def addresses(lab: Lab) -> dict[tuple[str, int], str]:
    """(Service, family) -> its address."""
    return {
        (item["metadata"]["name"], 6 if ":" in ip else 4): ip
        for item in lab.json("get", "services", "-n", NAMESPACE)["items"]
        for ip in item["spec"]["clusterIPs"]
    }


def asked(lab: Lab, questions: list[tuple[str, str, str, int, int]]) -> dict[str, Any]:
    """What the client finds for each question: name -> answer. It runs in the pod's network and in this cgroup."""
    netns = names.NETNS_ROOT / names.pod_netns(lab.name, NAMESPACE, "client")
    command = ["nsenter", f"--net={netns}", sys.executable, "-I", "-S", "-c", CLIENT, json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def questions(
    addresses: dict[tuple[str, int], str],
    services: tuple[str, ...],
    sizes: dict[str, tuple[int, ...]],
    port: int = PORT,
) -> list[tuple[str, str, str, int, int]]:
    return [
        (f"{name} {kind} ipv{family} {size}", kind, addresses[name, family], port, size)
        for name in services
        for kind, several in sizes.items()
        for family in FAMILIES
        for size in several
    ]


def test_this_process_is_not_in_the_nodes_cgroup(lab: Lab) -> None:
    assert f"nodenet.{lab.name}" not in Path("/proc/self/cgroup").read_text()


def test_both_nodes_answer_as_the_service(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    wanted = questions(addresses, PLACES, {"tcp": (0, 256 * 4096), "udp": (256, 256 * 20)})
    found = asked(lab, wanted)
    assert found == {name: {"peer": [address, PORT], "same": True} for name, _, address, _, _ in wanted}


def test_a_pod_reaches_itself(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    wanted = questions(addresses, ("client",), {"tcp": (0, 256 * 1024), "udp": (256, 256 * 20)})
    found = asked(lab, wanted)
    assert found == {name: {"peer": [address, PORT], "same": True} for name, _, address, _, _ in wanted}


def test_policy_denies_behind_the_translation(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    found = asked(lab, questions(addresses, ("near-shut", "far-shut"), {"tcp": (0,), "udp": (0,)}))
    assert {answer["error"] for answer in found.values()} == {"TimeoutError"}
    assert len(found) == 8


def test_a_refusal_finds_its_socket(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    """TCP: a reset that comes from the Service. UDP: an ICMP error whose quote names the Service."""
    found = asked(lab, questions(addresses, ("near-silent", "far-silent"), {"tcp": (0,), "udp": (0,)}))
    assert {name: answer.get("error") for name, answer in found.items()} == dict.fromkeys(
        found, "ConnectionRefusedError"
    )
    assert len(found) == 8


def test_what_is_refused_is_answered_and_reported(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    found = asked(
        lab,
        [
            *(
                (f"nobody {kind} {v}", kind, addresses["nobody", v], PORT, 0)
                for kind in ("tcp", "udp")
                for v in FAMILIES
            ),
            *((f"port {kind} {v}", kind, addresses["near", v], 81, 0) for kind in ("tcp", "udp") for v in FAMILIES),
        ],
    )
    assert [answer.get("error") for answer in found.values()] == ["ConnectionRefusedError"] * 8
    wanted = {("SERVICE_BACKEND_NOT_FOUND", "nobody"), ("IS_A_CLUSTERIP", "near")}

    def told() -> set[tuple[str, str]]:
        dropped = [flow for flow in flows(lab) if flow.get("verdict") == "DROPPED"]
        return {(flow["drop_reason_desc"], flow.get("destination_service", {}).get("name", "")) for flow in dropped}

    until(lambda: wanted <= told(), f"{wanted} among the drops")


def test_flows_name_the_service(lab: Lab, addresses: dict[tuple[str, int], str]) -> None:
    asked(lab, questions(addresses, PLACES, {"tcp": (0,)}))

    def named() -> set[tuple[str, str]]:
        to_pods = [flow for flow in flows(lab) if flow.get("destination_service") and flow.get("destination")]
        return {(flow["destination"].get("pod_name", ""), flow["destination_service"]["name"]) for flow in to_pods}

    until(lambda: {(name, name) for name in PLACES} <= named(), "flows with both Services' names")


def flows(lab: Lab) -> list[dict[str, Any]]:
    """What both nodes observed of the client's calls."""
    lines = nodenet("observe", "--lab", lab.name, "--last", "500", "-o", "jsonpb").stdout.splitlines()
    return [json.loads(line)["flow"] for line in lines if line.strip()]
