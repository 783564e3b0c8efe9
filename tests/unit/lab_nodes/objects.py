"""Small Kubernetes objects for these tests."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def pod(name: str, namespace: str = "default", **more: Any) -> Object:
    """A pod; `ports` are (number, protocol), `ips`, `labels`, `owner` (kind, name), `ready`, `message`."""
    ports = [{"containerPort": number, "protocol": protocol} for number, protocol in more.get("ports", [(80, "TCP")])]
    conditions = [{"type": "Ready", "status": str(more.get("ready", True))}]
    status: Object = {"podIPs": [{"ip": ip} for ip in more.get("ips", ())], "conditions": conditions}
    if "message" in more:
        status["containerStatuses"] = [{"state": {"waiting": {"reason": "X", "message": more["message"]}}}]
    metadata: Object = {"namespace": namespace, "name": name, "labels": more.get("labels", {}), "uid": name}
    if "owner" in more:
        kind, owner = more["owner"]
        metadata["ownerReferences"] = [{"kind": kind, "name": owner}]
    spec: Object = {"containers": [{"name": "c", "ports": ports, "env": more.get("env", [])}], "nodeName": "node1"}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status}


def service(name: str, namespace: str = "default", **more: Any) -> Object:
    """A Service; `ips`, `ports` as the API writes them, `selector`."""
    spec: Object = {
        "clusterIPs": more.get("ips", ["10.96.0.9"]),
        "ports": more.get("ports", [{"port": 80}]),
        "selector": more.get("selector", {"app": name}),
    }
    return {"kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec}


def endpoints(of: str, addresses: list[str], namespace: str = "default", port: int = 8080, name: str = "") -> Object:
    """An EndpointSlice with ready endpoints."""
    return {
        "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": f"{of}-x", "labels": {"kubernetes.io/service-name": of}},
        "ports": [{"port": port, "name": name}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }
