"""The objects of a connectivity test: a namespace with pods, Services and NetworkPolicies. Pure."""

from __future__ import annotations

from typing import Any

from nodenet.cluster.connectivity.peer import PORTS

Obj = dict[str, Any]

LABEL = "app.kubernetes.io/managed-by"
OWNER = "nodenet-connectivity-test"
PEER = ["python3", "/peer/peer.py"]
CONTAINER = "peer"
_CONFIG = "peer"
# The user `nobody`: the pods also run where Pod Security enforces `restricted`.
_USER = 65534


def namespace(name: str) -> Obj:
    labels = {LABEL: OWNER, "pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def program(space: str, source: str) -> Obj:
    """The program of the pods."""
    metadata = {"name": _CONFIG, "namespace": space}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"peer.py": source}}


def pod(space: str, name: str, node: str, image: str, **labels: str) -> Obj:
    """A pod on a node. It serves, so that the kubelet's probes reach it, and is a client through exec."""
    probe = {"httpGet": {"path": "/", "port": PORTS[0]}, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3}
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [*PEER, "serve"],
        "env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
        "readinessProbe": probe,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "peer", "mountPath": "/peer", "readOnly": True}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": {LABEL: OWNER, "name": name, **labels}},
        "spec": {
            "affinity": {"nodeAffinity": _on(node)},
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "peer", "configMap": {"name": _CONFIG}}],
        },
    }


def _on(node: str) -> Obj:
    """By name, because the label kubernetes.io/hostname may differ from it."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}


SERVICE, HEADLESS, NODE_PORT, HAIRPIN = "server", "server-headless", "server-nodeport", "server-1"
ROLE = "role"
SERVER, CLIENT, ISOLATED = "server", "client", "isolated"
FRIEND = {"friend": "yes"}


def services(space: str) -> list[Obj]:
    """The Services of the servers, of both families where the cluster has both. HAIRPIN has one backend only."""
    ports = [
        {"name": protocol.lower(), "port": PORTS[0], "targetPort": PORTS[0], "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    every = {ROLE: SERVER}
    specs: dict[str, Obj] = {
        SERVICE: {"selector": every},
        HEADLESS: {"selector": every, "clusterIP": "None"},
        NODE_PORT: {"selector": every, "type": "NodePort"},
        HAIRPIN: {"selector": {"name": "server-1"}},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": space},
            "spec": {"ipFamilyPolicy": "PreferDualStack", "ports": ports, **spec},
        }
        for name, spec in specs.items()
    ]


def policy(space: str, name: str, subject: Obj, direction: str, rules: list[Obj]) -> Obj:
    """A NetworkPolicy of one direction, Ingress or Egress. Without rules it allows nothing."""
    spec = {"podSelector": {"matchLabels": subject}, "policyTypes": [direction], direction.lower(): rules}
    metadata = {"name": name, "namespace": space}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
