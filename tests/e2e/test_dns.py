"""DNS in a lab: the names of a real application, asked from inside of its pods through the Service kube-dns. Policy
decides who may ask; a user's own manifest replaces the lab's."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.labs import Lab, nodenet, running, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

NAMESPACE = "shop"
TREE = f"{NAMESPACE}.svc.cluster.local"
# A program in a pod asks a server questions (name, type): JSON in, and for each question its code and sorted data out.
ASK = """
import json, sys, dns.message, dns.query, dns.rcode
answers = []
for name, kind in json.loads(sys.argv[2]):
    question = dns.message.make_query(name, kind, use_edns=0)
    found, _ = dns.query.udp_with_fallback(question, sys.argv[1], 3)
    data = sorted(str(rdata) for rrset in found.answer for rdata in rrset)
    answers.append([dns.rcode.to_text(found.rcode()), *data])
print(json.dumps(answers))
"""
# The C library's resolver.
RESOLVE = """
import json, socket, sys
print(json.dumps([sorted({i[4][0] for i in socket.getaddrinfo(name, 80)}) for name in sys.argv[1:]]))
"""


def workload(kind: str, name: str, replicas: int, port: dict[str, Any], **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "stand-in", "ports": [port]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    selector = {"matchLabels": {"app": name}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": selector, "template": template, **spec},
    }


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def policy(name: str, namespace: str = NAMESPACE, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


DUAL = {"ipFamilyPolicy": "RequireDualStack"}
OBJECTS = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    workload("Deployment", "web", 2, {"name": "http", "containerPort": 8080}),
    service("web", **DUAL, selector={"app": "web"}, ports=[{"name": "http", "port": 80, "targetPort": "http"}]),
    workload("StatefulSet", "pg", 2, {"name": "pg", "containerPort": 5432}, serviceName="pg"),
    service("pg", **DUAL, clusterIP="None", selector={"app": "pg"}, ports=[{"name": "pg", "port": 5432}]),
    service("alias", type="ExternalName", externalName=f"web.{TREE}"),
    service("outside", type="ExternalName", externalName="db.example.com"),
    workload("Deployment", "client", 1, {"containerPort": 1}),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = write(tmp_path_factory.mktemp("dns"), *OBJECTS)
    with running("dns", "--dns", "--ip-family", "dual", "--nodes", "2", "-f", file) as found:
        yield found


def write(folder: Path, *objects: dict[str, Any]) -> Path:
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return file


def python(lab: Lab, code: str, *words: str, pod: str = "deploy/client") -> str:
    """What a Python program in the pod prints; "" if it fails. It has the modules of these tests."""
    return lab.exec(NAMESPACE, pod, sys.executable, "-c", code, *words, check=False).stdout.strip()


def ask(lab: Lab, *questions: tuple[str, str], server: str = "10.96.0.10") -> list[list[str]] | None:
    """The answers; None if one question got none."""
    text = python(lab, ASK, server, json.dumps(questions))
    return None if not text else json.loads(text)


def resolve(lab: Lab, *names: str) -> list[list[str]] | None:
    text = python(lab, RESOLVE, *names)
    return None if not text else json.loads(text)


def reverse(address: str) -> str:
    return ip_address(address).reverse_pointer


def cluster_ips(lab: Lab, name: str) -> list[str]:
    found: list[str] = lab.json("get", "service", name, "-n", NAMESPACE)["spec"]["clusterIPs"]
    return found


def pod_ips(lab: Lab, name: str) -> list[str]:
    return [entry["ip"] for pod in lab.pods(NAMESPACE, name) for entry in pod["status"]["podIPs"]]


def test_the_pods_are_those_of_a_cluster(lab: Lab) -> None:
    pods = lab.pods("kube-system")
    assert [pod["metadata"]["labels"]["k8s-app"] for pod in pods] == ["kube-dns"] * 2
    service = lab.json("get", "service", "kube-dns", "-n", "kube-system")
    assert service["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:10:96::a"]


def test_names_of_services(lab: Lab) -> None:
    four, six = cluster_ips(lab, "web")
    expected = {
        (f"web.{TREE}", "A"): ["NOERROR", four],
        (f"WEB.{TREE}", "AAAA"): ["NOERROR", six],
        (f"_http._tcp.web.{TREE}", "SRV"): ["NOERROR", f"0 100 80 web.{TREE}."],
        (reverse(four), "PTR"): ["NOERROR", f"web.{TREE}."],
        (reverse(six), "PTR"): ["NOERROR", f"web.{TREE}."],
        # ExternalName, in the cluster and outside.
        (f"alias.{TREE}", "A"): ["NOERROR", *sorted([f"web.{TREE}.", four])],
        (f"outside.{TREE}", "A"): ["NOERROR", "db.example.com."],
        # A name of another type, and names that do not exist.
        (f"web.{TREE}", "MX"): ["NOERROR"],
        (f"nope.{TREE}", "A"): ["NXDOMAIN"],
        ("example.com", "A"): ["NXDOMAIN"],
    }
    assert ask(lab, *expected) == list(expected.values())
    assert ask(lab, (f"web.{TREE}", "A"), server="fd00:10:96::a") == [["NOERROR", four]]


def test_names_of_pods(lab: Lab) -> None:
    addresses = pod_ips(lab, "pg")
    first = pod_ips(lab, "pg-0")
    hosts = [f"0 100 5432 pg-{number}.pg.{TREE}." for number in (0, 1)]
    expected = {
        (f"pg.{TREE}", "A"): ["NOERROR", *sorted(address for address in addresses if "." in address)],
        (f"pg.{TREE}", "AAAA"): ["NOERROR", *sorted(address for address in addresses if ":" in address)],
        (f"pg-0.pg.{TREE}", "A"): ["NOERROR", first[0]],
        (f"pg-0.pg.{TREE}", "AAAA"): ["NOERROR", first[1]],
        (f"_pg._tcp.pg.{TREE}", "SRV"): ["NOERROR", *hosts],
        (reverse(first[0]), "PTR"): ["NOERROR", f"pg-0.pg.{TREE}."],
        (reverse(first[1]), "PTR"): ["NOERROR", f"pg-0.pg.{TREE}."],
        ("10-244-1-9.shop.pod.cluster.local", "A"): ["NOERROR", "10.244.1.9"],
    }
    assert ask(lab, *expected) == list(expected.values())


def test_a_pods_resolver_searches_its_namespace(lab: Lab) -> None:
    """What `curl http://pg-1.pg/` does: the C library with the pod's resolv.conf."""
    web, second = sorted(cluster_ips(lab, "web")), sorted(pod_ips(lab, "pg-1"))
    assert resolve(lab, "web", "pg-1.pg", "web.shop.svc", "alias") == [web, second, web, web]
    assert lab.fetch(NAMESPACE, "deploy/client", "http://pg-1.pg:5432/") == "pg-1"
    assert "web" not in lab.exec(NAMESPACE, "deploy/client", "cat", "/etc/hosts").stdout


@pytest.mark.skipif(not shutil.which("dig"), reason="dig is not installed (Debian: bind9-dnsutils)")
def test_dig_falls_back_to_tcp(lab: Lab, tmp_path: Path) -> None:
    """100 addresses of one headless Service do not fit into a datagram."""
    name, labels = "many", {"kubernetes.io/service-name": "many"}
    endpoints = [{"addresses": [f"10.244.200.{number}"], "conditions": {"ready": True}} for number in range(1, 101)]
    part = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "many-1", "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "p", "port": 1, "protocol": "TCP"}],
    }
    lab("apply", "-f", write(tmp_path, service(name, clusterIP="None", ports=[{"name": "p", "port": 1}]), part))

    def dig(*words: str) -> str:
        return lab.exec(NAMESPACE, "deploy/client", "dig", f"{name}.{TREE}", *words).stdout

    until(lambda: dig("+short").count("10.244.200.") == 100, "the Service's names are known")
    assert " tc" in dig("+ignore", "+bufsize=512").split("flags:")[1].split(";")[0]
    assert "(TCP)" in dig()


def test_policy_decides_who_may_ask(lab: Lab, tmp_path: Path) -> None:
    """The mistake that lint warns of, an egress policy that forgets DNS, can be seen here: no name, and a drop."""
    client = {"matchLabels": {"app": "client"}}
    to_web = {"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}
    dns = {
        "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
        "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")],
    }
    forgetful = policy("client", podSelector=client, policyTypes=["Egress"], egress=[to_web])
    file = write(tmp_path, forgetful)
    lab("apply", "-f", file)
    try:
        until(lambda: ask(lab, (f"web.{TREE}", "A")) is None, "names are cut", 30)
        address = cluster_ips(lab, "web")[0]
        assert lab.fetch(NAMESPACE, "deploy/client", f"http://{address}/").startswith("web-")
        flows = nodenet("observe", "--lab", lab.name, "--verdict", "DROPPED", "--last", "500", "-o", "jsonpb").stdout
        drops = [json.loads(line)["flow"] for line in flows.splitlines()]
        to_dns = [
            flow
            for flow in drops
            if flow.get("destination", {}).get("labels") and "k8s:k8s-app=kube-dns" in flow["destination"]["labels"]
        ]
        assert any(flow["l4"].get("UDP", {}).get("destination_port") == 53 for flow in to_dns)
        lab(
            "apply",
            "-f",
            write(tmp_path, policy("client", podSelector=client, policyTypes=["Egress"], egress=[to_web, dns])),
        )
        until(lambda: resolve(lab, "web") is not None, "names are back")
    finally:
        lab("delete", "-f", file)


def test_probes_reach_dns_pods_as_every_pod(lab: Lab) -> None:
    for protocol in ("udp", "tcp"):
        found = lab.json(
            "probe",
            "--from",
            f"{NAMESPACE}/deploy/client",
            "--to",
            "svc/kube-dns.kube-system",
            "--port",
            f"53/{protocol}",
        )
        assert found["outcome"] == "answered", found


def test_a_users_own_manifest_replaces_it(lab: Lab, tmp_path: Path) -> None:
    """A manifest of CoreDNS has these names. Its pods answer too, whatever their image; its other ports are open."""
    ports = [
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        {"name": "metrics", "containerPort": 9153, "protocol": "TCP"},
    ]
    container = {"name": "coredns", "image": "coredns:1.13", "args": ["-conf", "/etc/coredns/Corefile"], "ports": ports}
    labels = {"k8s-app": "kube-dns"}
    own = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"dnsPolicy": "Default", "containers": [container]}},
        },
    }
    lab("apply", "-f", write(tmp_path, own), "--wait")
    until(lambda: len(lab.pods("kube-system")) == 1, "the lab's own pods are gone", 40)
    (pod,) = lab.pods("kube-system")
    assert pod["spec"]["containers"][0]["image"] == "coredns:1.13"
    until(lambda: ask(lab, (f"web.{TREE}", "A")) is not None, "the new pod answers")
    assert lab.fetch(NAMESPACE, "deploy/client", f"http://{pod['status']['podIP']}:9153/") == pod["metadata"]["name"]
