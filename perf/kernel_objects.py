"""The objects of the kernel check: three pods, a dual-stack Service, a policy and a CNI configuration, as plain
data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nodenet.model import IPAddress

SERVICE = {4: "10.96.0.10", 6: "fd00:96::a"}


def cni_conf() -> bytes:
    """A CNI configuration with addresses of both families, from host-local pools in memory, and a gateway on the
    bridge."""
    ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]
    return json.dumps(
        {
            "cniVersion": "1.1.0",
            "name": "check",
            "type": "nodenet",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "agentSocket": "/run/nodenet/cni.sock",
            "ipam": {"type": "host-local", "dataDir": "/run/leases", "ranges": ranges},
        }
    ).encode()


def objects(pods: Mapping[str, Sequence[IPAddress]]) -> list[dict[str, Any]]:
    """All objects of the API. The web pod accepts only the client, on the Service's two target ports, and has no
    allowed egress."""
    return [
        {"kind": "Namespace", "metadata": {"name": "default"}},
        {"kind": "Node", "metadata": {"name": "node1"}, "spec": {"podCIDRs": ["10.77.0.0/24", "fd77::/64"]}},
        *(_pod(name, ips) for name, ips in pods.items()),
        _service(),
        *(_slice(version, pods["web"]) for version in (4, 6)),
        _policy(),
    ]


def _pod(name: str, ips: Sequence[IPAddress]) -> dict[str, Any]:
    addresses = [{"ip": str(ip)} for ip in ips]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": "node1", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": str(ips[0]), "podIPs": addresses},
    }


def _service() -> dict[str, Any]:
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 8053},
        {"name": "none", "port": 81, "protocol": "TCP", "targetPort": 8081},
    ]
    return {
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": SERVICE[4], "clusterIPs": [SERVICE[4], SERVICE[6]], "ports": ports},
    }


def _slice(version: int, ips: Sequence[IPAddress]) -> dict[str, Any]:
    """An EndpointSlice. It has no entry for the port "none", so this port has no backend."""
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"web-{version}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": f"IPv{version}",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 8053, "protocol": "UDP"}],
        "endpoints": [{"addresses": [str(ip) for ip in ips if ip.version == version]}],
    }


def _policy() -> dict[str, Any]:
    ports = [{"protocol": "TCP", "port": 8080}, {"protocol": "UDP", "port": 8053}]
    peers = [{"podSelector": {"matchLabels": {"app": "client"}}}]
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
        },
    }
