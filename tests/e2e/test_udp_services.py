"""Sockets of UDP Services in a lab: whose answer it is, and what becomes of them when a backend leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.labs import NODENET, Lab, nodenet, running, until
from tests.sockclient import SocketProcess

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

NAMESPACE = "udp"
PORT, TARGET = 53, 5353
# Socket family and how the address of a Service is written.
FAMILIES = {"ipv4": (4, ""), "ipv6": (6, ""), "mapped": (6, "::ffff:")}


def pod(name: str, node: str) -> dict[str, Any]:
    ports = [{"containerPort": TARGET, "protocol": "UDP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "stand-in", "ports": ports}]},
    }


def service(name: str, app: str) -> dict[str, Any]:
    ports = [{"protocol": "UDP", "port": PORT, "targetPort": TARGET}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": app}, "ipFamilyPolicy": "RequireDualStack", "ports": ports},
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        pod("client", "node1"),
        pod("near", "node1"),
        pod("far", "node2"),
        *(service(f"{name}-{number}", name) for name in ("near", "far") for number in (1, 2, 3)),
        service("moved", "far"),
        service("stays", "far"),
    ]
    manifest = tmp_path_factory.mktemp("udp") / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("udp", "--nodes", "2", "--ip-family", "dual", "-f", manifest) as found:
        yield found


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[SocketProcess]:
    with SocketProcess([*NODENET, "lab", "exec", "--name", lab.name, "-n", NAMESPACE, "client", "--"]) as process:
        yield process


@pytest.fixture(scope="module")
def addresses(lab: Lab) -> dict[tuple[str, int], str]:
    """(Service, family) -> its address."""
    return {
        (item["metadata"]["name"], 6 if ":" in ip else 4): ip
        for item in lab.json("get", "services", "-n", NAMESPACE)["items"]
        for ip in item["spec"]["clusterIPs"]
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("app", ["near", "far"])
def test_every_answer_has_the_address_that_was_asked(
    client: SocketProcess, addresses: dict[tuple[str, int], str], app: str, family: str
) -> None:
    """Three Services, one backend, one socket, all asked before an answer is read; every time."""
    version, prefix = FAMILIES[family]
    kind = 6 if family == "ipv6" else 4
    services = {prefix + addresses[f"{app}-{number}", kind]: f"\0{number}" for number in (1, 2, 3)}
    name = f"{app}-{family}"
    client.do("udp", name, None, 0, version)
    for _ in range(3):
        for address, question in services.items():
            client.do("sendto", name, question, address, PORT)
        answers = [client.do("receive", name) for _ in services]
        assert {source[0]: data for data, source in answers} == services
        assert {source[1] for _, source in answers} == {PORT}


def test_a_backend_that_leaves_takes_the_services_sockets_alone(
    lab: Lab, client: SocketProcess, addresses: dict[tuple[str, int], str], tmp_path: Path
) -> None:
    version = {name: kind for name, (kind, _) in FAMILIES.items()}
    for family, (kind, prefix) in FAMILIES.items():
        for name in ("moved", "stays"):
            client.do("udp", f"{name}-{family}", None, 0, kind)
            target = prefix + addresses[name, 6 if family == "ipv6" else 4]
            client.do("connect", f"{name}-{family}", target, PORT)
            client.do("send", f"{name}-{family}", "hostname")
            assert client.do("receive", f"{name}-{family}")[0] == "far"
    client.do("udp", "unconnected", None, 0, version["ipv4"])
    ask = ("sendto", "unconnected", "hostname", addresses["moved", 4], PORT)
    client.do(*ask)
    assert client.do("receive", "unconnected")[0] == "far"

    manifest = tmp_path / "moved.yaml"
    manifest.write_text(yaml.safe_dump(service("moved", "near")))
    lab("apply", "-f", manifest)

    def connected(name: str) -> bool:
        with suppress(OSError):
            return bool(client.do("peer", name))
        return False

    until(lambda: not any(connected(f"moved-{family}") for family in FAMILIES), "its sockets are ended")
    assert all(connected(f"stays-{family}") for family in FAMILIES)
    client.do(*ask)
    assert client.do("receive", "unconnected")[0] == "near"
    status = json.loads(nodenet("status", "--lab", lab.name, "--node", "node1", "-o", "json").stdout)
    assert status["sockets"] == {"ended": 3}
    log = lab.agent_log("node1")
    assert f"of pod {NAMESPACE}/client" in log
    assert f"is no longer a backend of Service {NAMESPACE}/moved" in log
