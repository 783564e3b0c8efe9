"""Services that are called from outside: a client on the lab's fabric, which is no node and has no agent. Real sockets,
both families, backends on the called node and on the other one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodenet.lab import names
from nodenet.lab.client import LabClient
from nodenet.lab.kinds import BY_KIND
from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

NAMESPACE = "shop"
PORT, TARGET = 80, 8080
# node1 has the address ...11 on the fabric, node2 ...12; the client is the fabric's router.
NODES = {("node1", 4): "172.30.0.11", ("node1", 6): "fd00:172:30::b"}
CLIENT_ADDRESS = {4: "172.30.0.1", 6: "fd00:172:30::1"}
PLACES = ("near", "far")
# Connects, sends data that has to come back, and asks which address the backend sees.
CLIENT = """
import json, socket, sys, threading
found = {}
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def ask(name, kind, address, port, size):
    out = found.setdefault(name, {})
    data = b"\\0" + bytes(range(256)) * (size // 256)
    try:
        with socket.socket(family(address), socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((address, port))
            sock.sendall(data)
            received = b""
            while len(received) < len(data):
                received += sock.recv(65536)
            out["same"] = received == data
        if kind == "tcp":
            with socket.create_connection((address, port), timeout=5) as sock:
                sock.sendall(b"GET /clientip HTTP/1.0\\r\\n\\r\\n")
                answer = b""
                while part := sock.recv(65536):
                    answer += part
                out["seen"] = answer.rpartition(b"\\n")[2].decode().rpartition(":")[0].strip("[]")
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


def service(name: str, app: str = "", **spec: Any) -> dict[str, Any]:
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "targetPort": TARGET}
        for protocol in ("TCP", "UDP")
    ]
    fields = {"type": "NodePort", "selector": {"app": app or name}, "ipFamilyPolicy": "RequireDualStack"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {**fields, "ports": ports, **spec},
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        pod("near", "node1", tier="web"),
        pod("far", "node2", tier="web"),
        *(service(name) for name in PLACES),
        *(service(f"{name}-local", name, externalTrafficPolicy="Local") for name in PLACES),
        service("empty"),
        service("both", "", selector={"tier": "web"}),
        service("sticky", "", selector={"tier": "web"}, sessionAffinity="ClientIP"),
    ]
    manifest = tmp_path_factory.mktemp("outside") / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("uplink", "--nodes", "2", "--ip-family", "dual", "-f", manifest) as found:
        yield found


@pytest.fixture(scope="module")
def node_ports(lab: Lab) -> dict[tuple[str, str], int]:
    """(Service, protocol) -> its NodePort."""
    return {
        (item["metadata"]["name"], port["protocol"].lower()): port["nodePort"]
        for item in lab.json("get", "services", "-n", NAMESPACE)["items"]
        for port in item["spec"]["ports"]
    }


def fabric(lab: Lab) -> Path:
    return names.NETNS_ROOT / names.fabric_netns(lab.name)


def outside(lab: Lab, code: str, *words: str) -> str:
    """What a Python program on the fabric prints."""
    command = ["nsenter", f"--net={fabric(lab)}", sys.executable, "-I", "-S", "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=True).stdout


def asked(lab: Lab, questions: list[tuple[str, str, str, int, int]]) -> dict[str, Any]:
    """What the client finds for each question: name -> answer."""
    found: dict[str, Any] = json.loads(outside(lab, CLIENT, json.dumps(questions)))
    return found


def test_this_process_is_not_in_a_nodes_cgroup(lab: Lab) -> None:
    assert f"nodenet.{lab.name}" not in Path("/proc/self/cgroup").read_text()


@pytest.mark.parametrize("place", PLACES)
def test_node_ports(lab: Lab, node_ports: dict[tuple[str, str], int], place: str) -> None:
    """A backend of the called node sees the client, one of the other node sees the called node."""
    wanted = [
        (f"{kind} {version} {size}", kind, NODES["node1", version], node_ports[place, kind], size)
        for kind, version, size in product(("tcp", "udp"), (4, 6), (0, 256 * 4))
    ] + [(f"long {version}", "tcp", NODES["node1", version], node_ports[place, "tcp"], 1 << 20) for version in (4, 6)]
    seen = CLIENT_ADDRESS if place == "near" else {version: NODES["node1", version] for version in (4, 6)}
    found = asked(lab, wanted)
    assert found == {
        name: {"same": True, **({"seen": seen[6 if ":" in address else 4]} if kind == "tcp" else {})}
        for name, kind, address, _, _ in wanted
    }


def test_policy_local(lab: Lab, node_ports: dict[tuple[str, str], int]) -> None:
    """Only backends of the called node; without one the packet is dropped without an answer."""
    wanted = [
        (f"{place} {kind} {version}", kind, NODES["node1", version], node_ports[f"{place}-local", kind], 256)
        for place, kind, version in product(PLACES, ("tcp", "udp"), (4, 6))
    ]
    found = asked(lab, wanted)
    for name, kind, address, _, _ in wanted:
        if name.startswith("far"):
            assert found[name] == {"error": "TimeoutError"}, name
        else:
            seen = {"seen": CLIENT_ADDRESS[6 if ":" in address else 4]} if kind == "tcp" else {}
            assert found[name] == {"same": True, **seen}, name


@pytest.mark.parametrize("place", PLACES)
def test_a_flow_names_the_service_and_the_client(lab: Lab, node_ports: dict[tuple[str, str], int], place: str) -> None:
    """Where it enters the node, wherever its backend is."""
    before = {version: len(_flows(lab, place, version)) for version in (4, 6)}
    assert all(
        answer["same"]
        for answer in asked(
            lab, [(f"v{v}", "udp", NODES["node1", v], node_ports[place, "udp"], 256) for v in (4, 6)]
        ).values()
    )
    for version in (4, 6):
        until(lambda v=version: len(_flows(lab, place, v)) == before[v] + 1, f"one more flow, IPv{version}")
        flow = _flows(lab, place, version)[-1]
        assert flow["IP"]["source"] == CLIENT_ADDRESS[version]
        assert (flow["destination"]["pod_name"], flow["verdict"]) == (place, "FORWARDED")
        assert flow["trace_observation_point"] == "FROM_NETWORK"
    shown = json.loads(
        nodenet("service", "show", f"{NAMESPACE}/{place}", "--lab", lab.name, "--node", "node1", "-o", "json").stdout
    )
    opened = [row["opened"] for row in shown["addresses"] if row["type"] == "NodePort" and row["protocol"] == "UDP"]
    assert opened == [before[4] + 1, before[6] + 1]


def _flows(lab: Lab, service: str, version: int) -> list[dict[str, Any]]:
    """The first packets of calls to the Service from outside, at node1."""
    words = ("--type", "trace:from-network", "--to-service", f"{NAMESPACE}/{service}", "--protocol", "udp")
    done = nodenet("observe", "--lab", lab.name, "--node", "node1", "--all", "-o", "json", *words, f"--ipv{version}")
    found = [json.loads(line)["flow"] for line in done.stdout.splitlines()]
    # Services are found by the start of their name.
    return [flow for flow in found if flow["destination_service"]["name"] == service]


def test_a_service_without_backends_refuses(lab: Lab, node_ports: dict[tuple[str, str], int]) -> None:
    """TCP by a reset, UDP by an ICMP error that finds the client's socket."""
    wanted = [
        (f"{kind} {version}", kind, NODES["node1", version], node_ports["empty", kind], 0)
        for kind, version in product(("tcp", "udp"), (4, 6))
    ]
    assert asked(lab, wanted) == {name: {"error": "ConnectionRefusedError"} for name, *_ in wanted}


# Prints which pod answers each of many connections.
WHO = """
import socket, sys
host, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = []
for _ in range(number):
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
        names.append(answer.rpartition(b"\\n")[2].decode())
print(*names)
"""


# Some seconds on an idle machine.
CALLS = 20000


def test_many_short_connections_to_one_backend_elsewhere(lab: Lab, node_ports: dict[tuple[str, str], int]) -> None:
    """More than there are source ports, within the time in which a closed flow expires: closed ones give way."""
    answer = outside(lab, WHO, NODES["node1", 4], str(node_ports["far", "tcp"]), str(CALLS))
    assert Counter(answer.split()) == {"far": CALLS}


def who(lab: Lab, address: str, port: int, number: int = 30) -> set[str]:
    return set(outside(lab, WHO, address, str(port), str(number)).split())


@pytest.mark.parametrize("version", [4, 6])
def test_session_affinity(lab: Lab, node_ports: dict[tuple[str, str], int], version: int) -> None:
    address = NODES["node1", version]
    assert who(lab, address, node_ports["both", "tcp"]) == {"near", "far"}
    assert len(who(lab, address, node_ports["sticky", "tcp"])) == 1


# Opens a connection, then echoes one byte over it for each line of its standard input.
LONG = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
    sock.sendall(b"\\0")
    assert sock.recv(1) == b"\\0"
    for line in sys.stdin:
        sock.sendall(b"x")
        print(sock.recv(1).decode(), flush=True)
"""


def round_trip(client: subprocess.Popen[str]) -> str:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write("\n")
    client.stdin.flush()
    return client.stdout.readline()


@pytest.mark.parametrize("place", PLACES)
def test_without_an_agent(lab: Lab, node_ports: dict[tuple[str, str], int], place: str) -> None:
    """kill -9: the open connection stays, new ones are served, and so it is after the agent's restart."""
    address, port = NODES["node1", 4], node_ports[place, "tcp"]
    question = [("new", "tcp", address, port, 256)]
    command = ["nsenter", f"--net={fabric(lab)}", sys.executable, "-I", "-S", "-c", LONG, address, str(port)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert round_trip(client) == "x\n"
        lab("agent", "kill", "node1")
        for _ in range(3):
            assert round_trip(client) == "x\n"
            assert asked(lab, question)["new"]["same"]
        until(lambda: lab("status", check=False).returncode == 0, "the agent is back")
        assert round_trip(client) == "x\n"
        assert asked(lab, question)["new"]["same"]
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(timeout=10) == 0
    ready = [line for line in lab.agent_log("node1").splitlines() if "ready after" in line]
    assert "0 programs attached, 0 map writes" in ready[-1]


def test_backends_that_come_and_go_fail_no_connection(
    lab: Lab, node_ports: dict[tuple[str, str], int], tmp_path: Path
) -> None:
    """New connections all the time, while one of two backends (here, and on the other node) leaves the Service
    and comes back."""
    address, port = NODES["node1", 4], node_ports["both", "tcp"]
    command = ["nsenter", f"--net={fabric(lab)}", sys.executable, "-I", "-S", "-c", WHO, address, str(port), str(CALLS)]
    client = LabClient(lab.name)
    # A file: the names do not fit into a pipe that is read at the end.
    found = tmp_path / "names"
    with (
        found.open("w") as names,
        subprocess.Popen(command, text=True, stdout=names, stderr=subprocess.PIPE) as load,
    ):
        changes = 0
        while load.poll() is None:
            for tier in ("none", "web"):
                patch = {"metadata": {"labels": {"tier": tier}}}
                client.patch(BY_KIND["Pod"], NAMESPACE, PLACES[changes % 2], patch)
                time.sleep(0.3)
            changes += 1
        _, errors = load.communicate()
    assert (load.returncode, errors) == (0, "")
    answers = Counter(found.read_text().split())
    assert answers.total() == CALLS
    assert answers.keys() == set(PLACES)
    assert changes > 2
