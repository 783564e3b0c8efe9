"""The fields of Services that traffic from a node meets, on real sockets: from a pod and from the node itself."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml

from nodenet.lab import names
from tests.e2e.labs import NODENET, Lab, nodenet, running, until
from tests.sockclient import SocketProcess

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

NAMESPACE = "fields"
PORT, TARGET, NODE_PORT = 80, 8080, 30777
HEALTH = 30790
BALANCED = "203.0.113.5"
EXTERNAL = {4: "198.51.100.7", 6: "2001:db8:51::7"}
CLIENTS = ("client", "host")
FAMILIES = (4, 6)


def pod(name: str, node: str, app: str, **spec: Any) -> dict[str, Any]:
    ports = [{"containerPort": TARGET, "protocol": protocol} for protocol in ("TCP", "UDP")]
    containers = [{"name": "c", "image": "stand-in", **({} if spec else {"ports": ports})}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": containers, **spec},
    }


def service(
    name: str, app: str, node_port: int = 0, labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "targetPort": TARGET}
        | ({"nodePort": node_port} if node_port else {})
        for protocol in ("TCP", "UDP")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels or {}},
        "spec": {"selector": {"app": app}, "ipFamilyPolicy": "RequireDualStack", "ports": ports, **spec},
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        pod("client", "node1", "client"),
        pod("host", "node1", "client", hostNetwork=True),
        pod("near", "node1", "both"),
        pod("far", "node2", "both"),
        pod("only-far", "node2", "only-far"),
        service("ports", "both", NODE_PORT, type="NodePort"),
        service("local-ports", "only-far", NODE_PORT + 1, type="NodePort", externalTrafficPolicy="Local"),
        service("external", "both", externalIPs=list(EXTERNAL.values())),
        service("local", "both", internalTrafficPolicy="Local"),
        service("local-far", "only-far", internalTrafficPolicy="Local"),
        service("balanced", "both", type="LoadBalancer"),
        service("ranges", "both", type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0/8"]),
        service("checked", "both", type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=HEALTH),
        service("sticky", "both", NODE_PORT + 5, type="NodePort", sessionAffinity="ClientIP"),
        service("headless", "both", labels={"service.kubernetes.io/headless": ""}),
    ]
    manifest = tmp_path_factory.mktemp("fields") / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    with running("fields", "--nodes", "2", "--ip-family", "dual", "-f", manifest) as found:
        yield found


@pytest.fixture(scope="module")
def clients(lab: Lab) -> Iterator[dict[str, SocketProcess]]:
    command = [*NODENET, "lab", "exec", "--name", lab.name, "-n", NAMESPACE]
    with ExitStack() as stack:
        yield {name: stack.enter_context(SocketProcess([*command, name, "--"])) for name in CLIENTS}


@pytest.fixture(scope="module")
def addresses(lab: Lab) -> dict[tuple[str, int], str]:
    """(Service or node, family) -> its address."""
    found = {
        (item["metadata"]["name"], 6 if ":" in ip else 4): ip
        for item in lab.json("get", "services", "-n", NAMESPACE)["items"]
        for ip in item["spec"]["clusterIPs"]
    }
    for node in lab.json("get", "nodes")["items"]:
        for entry in node["status"]["addresses"]:
            if entry["type"] == "InternalIP":
                found[node["metadata"]["name"], 6 if ":" in entry["address"] else 4] = entry["address"]
    return found


_sockets = iter(range(1_000_000))


def answer(client: SocketProcess, address: str, port: int) -> str:
    """Echo over TCP; UDP connected and unconnected. The peer is the address that was called each time. Returns the pod
    that answered the last datagram."""
    name = f"s{next(_sockets)}"
    client.do("tcp", name, address, port)
    assert client.do("peer", name) == [address, port]
    client.do("send", name, "\0data")
    assert client.do("receive", name)[0] == "\0data"
    family = 6 if ":" in address else 4
    client.do("udp", f"{name}c", None, 0, family)
    client.do("connect", f"{name}c", address, port)
    assert client.do("peer", f"{name}c") == [address, port]
    client.do("send", f"{name}c", "hostname")
    assert client.do("receive", f"{name}c")[1] == [address, port]
    client.do("udp", f"{name}u", None, 0, family)
    client.do("sendto", f"{name}u", "hostname", address, port)
    text, source = client.do("receive", f"{name}u")
    assert source == [address, port]
    return str(text)


def error(client: SocketProcess, address: str, port: int) -> int:
    """The errno of a TCP connection that is not made."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 the caller compares the number
        client.do("tcp", f"s{next(_sockets)}", address, port)
    return raised.value.errno or 0


Clients = dict[str, SocketProcess]
Addresses = dict[tuple[str, int], str]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", CLIENTS)
def test_node_port_on_the_nodes_own_address(clients: Clients, addresses: Addresses, client: str, family: int) -> None:
    found = {answer(clients[client], addresses["node1", family], NODE_PORT) for _ in range(12)}
    assert found == {"near", "far"}


@pytest.mark.parametrize("client", CLIENTS)
def test_external_policy_local_is_for_outside(clients: Clients, addresses: Addresses, client: str) -> None:
    assert answer(clients[client], addresses["node1", 4], NODE_PORT + 1) == "only-far"


@pytest.mark.parametrize("client", CLIENTS)
def test_node_port_on_another_nodes_address_is_that_nodes(clients: Clients, addresses: Addresses, client: str) -> None:
    """The packet goes there as it is. To that node it is traffic from outside."""
    assert {answer(clients[client], addresses["node2", 4], NODE_PORT) for _ in range(12)} == {"near", "far"}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_ports_of_the_node_are_its_own(clients: Clients, addresses: Addresses, family: int) -> None:
    """Its address has a frontend, but it is no ClusterIP."""
    clients["host"].do("listen", f"own{family}", addresses["node1", family], NODE_PORT + 2)
    for client in CLIENTS:
        name = f"s{next(_sockets)}"
        clients[client].do("tcp", name, addresses["node1", family], NODE_PORT + 2)
        assert clients[client].do("peer", name) == [addresses["node1", family], NODE_PORT + 2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", CLIENTS)
def test_external_ips(clients: Clients, client: str, family: int) -> None:
    assert {answer(clients[client], EXTERNAL[family], PORT) for _ in range(12)} == {"near", "far"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", CLIENTS)
def test_internal_policy_local(clients: Clients, addresses: Addresses, client: str, family: int) -> None:
    assert {answer(clients[client], addresses["local", family], PORT) for _ in range(8)} == {"near"}


@pytest.mark.parametrize("family", FAMILIES)
def test_internal_policy_local_without_a_backend_here(clients: Clients, addresses: Addresses, family: int) -> None:
    """A pod's packets are dropped without an answer; the node's own call fails at once."""
    address = addresses["local-far", family]
    assert error(clients["client"], address, PORT) == errno.ETIMEDOUT
    assert error(clients["host"], address, PORT) == errno.EPERM


def test_session_affinity(lab: Lab, clients: Clients, addresses: Addresses) -> None:
    """One backend for all UDP flows of a client: at both of the Service's addresses, and packet by packet too.
    TCP and UDP are two Service ports, so each has its own backend."""
    netns = names.NETNS_ROOT / names.pod_netns(lab.name, NAMESPACE, "client")
    places = [(addresses["sticky", 4], PORT), (addresses["node1", 4], NODE_PORT + 5)]
    found = {datagram(clients["client"], *places[how % 2], connected=how % 3 == 0) for how in range(18)}
    # A process in the pod's network, and in no cgroup of its node: the socket programs do not see it.
    with SocketProcess(["nsenter", f"--net={netns}"]) as outside:
        found |= {datagram(outside, *places[how % 2], connected=True) for how in range(6)}
    assert len(found) == 1
    assert len({datagram(clients["host"], *places[0], connected=True) for _ in range(8)}) == 1
    rows = [row for row in _rows(lab, "sticky") if row["type"] == "ClusterIP"]
    assert {row["affinitySeconds"] for row in rows} == {10800}


def datagram(client: SocketProcess, address: str, port: int, *, connected: bool) -> str:
    """The pod that answers a new UDP socket."""
    name = f"s{next(_sockets)}"
    client.do("udp", name, None, 0, 6 if ":" in address else 4)
    if connected:
        client.do("connect", name, address, port)
        client.do("send", name, "hostname")
    else:
        client.do("sendto", name, "hostname", address, port)
    text, source = client.do("receive", name)
    assert source == [address, port]
    return str(text)


def _set_ingress(lab: Lab, name: str, *ingress: dict[str, str]) -> None:
    """The status that a cloud's controller writes."""
    _patch(lab, name, {"status": {"loadBalancer": {"ingress": list(ingress)}}}, "--subresource=status")


def _patch(lab: Lab, name: str, patch: dict[str, Any], *options: str) -> None:
    config = lab("kubeconfig").stdout.strip()
    command = ["kubectl", "--kubeconfig", config, "patch", "service", name, "-n", NAMESPACE, *options]
    subprocess.run([*command, "--type=merge", "-p", json.dumps(patch)], check=True, capture_output=True, timeout=60)


def _rows(lab: Lab, name: str) -> list[dict[str, Any]]:
    text = nodenet("service", "list", "--lab", lab.name, "--node", "node1", "-o", "json").stdout
    rows = [json.loads(line) for line in text.splitlines()] if text.startswith("{") else json.loads(text)
    return [row for row in rows if row["service"] == f"{NAMESPACE}/{name}"]


@pytest.mark.parametrize("client", CLIENTS)
def test_load_balancer_addresses(lab: Lab, clients: Clients, client: str) -> None:
    _set_ingress(lab, "balanced", {"ip": BALANCED, "ipMode": "VIP"}, {"ip": "203.0.113.6", "ipMode": "Proxy"})
    until(lambda: any(row["frontend"] == f"{BALANCED}:{PORT}" for row in _rows(lab, "balanced")), "it has a frontend")
    assert {answer(clients[client], BALANCED, PORT) for _ in range(12)} == {"near", "far"}
    assert not any("203.0.113.6" in row["frontend"] for row in _rows(lab, "balanced"))


def test_source_ranges(lab: Lab, clients: Clients, addresses: Addresses) -> None:
    """The pods are in the range of one Service, the node in that of the other one. A pod's packet is dropped without an
    answer; the node's own call fails at once."""
    near = {str(ip_address(addresses["node1", 4])) + "/32": ("host", "client", errno.ETIMEDOUT)}
    pods = {"10.0.0.0/8": ("client", "host", errno.EPERM)}
    assert ip_address(addresses["node1", 4]) not in ip_network("10.0.0.0/8")
    for number, (network, (allowed, denied, code)) in enumerate({**pods, **near}.items()):
        address = f"203.0.113.{9 + number}"
        patch = {"spec": {"loadBalancerSourceRanges": [network]}}
        _patch(lab, "ranges", patch)
        _set_ingress(lab, "ranges", {"ip": address})
        until(lambda at=address: any(row["frontend"] == f"{at}:{PORT}" for row in _rows(lab, "ranges")), "a frontend")
        assert answer(clients[allowed], address, PORT) in ("near", "far")
        assert error(clients[denied], address, PORT) == code
    assert not any(row["notServed"] for row in _rows(lab, "ranges"))


@pytest.mark.parametrize(("node", "status", "count"), [("node1", 200, 1), ("node2", 200, 1)])
def test_health_check_node_port(
    lab: Lab, clients: Clients, addresses: Addresses, node: str, status: int, count: int
) -> None:
    """A client outside the node asks it, as a load balancer does."""
    client, name = clients["client"], f"s{next(_sockets)}"
    client.do("tcp", name, addresses[node, 4], HEALTH)
    client.do("send", name, "GET /healthz HTTP/1.0\r\n\r\n")
    text = ""
    while '"serviceProxyHealthy"' not in text:
        text += client.do("receive", name)[0]
    assert text.startswith(f"HTTP/1.0 {status} ")
    assert f'"localEndpoints": {count}' in text


def test_the_list_shows_type_and_policy(lab: Lab) -> None:
    rows = _rows(lab, "local-ports")
    shown = {(row["type"], row["trafficPolicy"], row["scope"], row["protocol"]) for row in rows}
    assert shown == {
        (kind, policy, scope, protocol)
        for kind, policy, scope in (
            ("ClusterIP", "Cluster", "all"),
            # The external policy is for traffic from outside.
            ("NodePort", "Cluster", "internal"),
            ("NodePort", "Local", "external"),
        )
        for protocol in ("TCP", "UDP")
    }
    # Traffic from outside has no backend on this node.
    assert {row["scope"] for row in rows if row["onlyElsewhere"]} == {"external"}
    assert all(row["onlyElsewhere"] for row in _rows(lab, "local-far"))


def test_the_label_headless(clients: Clients, addresses: Addresses) -> None:
    """The Service has a cluster IP in the API, and no frontend on any node."""
    name = f"s{next(_sockets)}"
    clients["client"].do("udp", name, None, 0, 4)
    clients["client"].do("connect", name, addresses["headless", 4], PORT)
    assert clients["client"].do("peer", name) == [addresses["headless", 4], PORT]
    assert error(clients["client"], addresses["headless", 4], PORT) in (
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    )


def test_a_changed_policy_counts_for_the_next_connection(
    lab: Lab, clients: Clients, addresses: Addresses, tmp_path: Any
) -> None:
    manifest = tmp_path / "local.yaml"
    manifest.write_text(yaml.safe_dump(service("local", "both", internalTrafficPolicy="Cluster")))
    lab("apply", "-f", manifest)
    client, address = clients["client"], addresses["local", 4]
    until(lambda: answer(client, address, PORT) == "far", "the backend on the other node is used")
