"""The soak's objects: servers, two kinds of clients, policies, a Service, and batches of short-lived pods.

A client's `role` and a server's `tier` change all the time between two values for which policy is the same. Allowed
clients are blue or green, denied ones red or grey, and the policies of both tiers allow blue and green. So an allowed
probe passes and a denied one does not, whether the agents have the old labels, the new ones, or a mixture. Pure.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

NAMESPACE, CHURN = "soak", "soak-churn"
NODES = ("node1", "node2")
# The agent of the first node is killed repeatedly. The memory of the second one's agent is measured.
KILLED, WATCHED = NODES
ROLES = {"friend": ("blue", "green"), "stranger": ("red", "grey")}
TIERS = ("gold", "silver")
OPEN = {"TCP": 80, "UDP": 5353}
CLOSED = {"TCP": 81, "UDP": 5354}
SERVICE = {"TCP": 8000, "UDP": 53}


def pod(namespace: str, name: str, node: str, labels: dict[str, str], ports: list[Object] | None = None) -> Object:
    container: Object = {"name": "main", "image": "stand-in", "ports": ports or []}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [container]},
    }


def clients() -> list[tuple[str, str]]:
    """(pod, kind) of all clients: one of each kind on each node."""
    return [(f"{kind}-{node}", kind) for kind in ROLES for node in NODES]


def servers() -> list[str]:
    return [f"server-{node}" for node in NODES]


def start() -> list[Object]:
    """The initial objects of the lab."""
    ports = [{"containerPort": port, "protocol": name} for ports in (OPEN, CLOSED) for name, port in ports.items()]
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (NAMESPACE, CHURN)
    ]
    objects += [
        pod(NAMESPACE, name, node, {"app": "server", "tier": TIERS[0]}, ports)
        for name, node in zip(servers(), NODES, strict=True)
    ]
    objects += [
        pod(NAMESPACE, name, name.rpartition("-")[2], {"app": kind, "role": ROLES[kind][0]}) for name, kind in clients()
    ]
    objects += [_policy(tier) for tier in TIERS]
    objects.append(_egress())
    objects.append(_service(NAMESPACE, "server", {"app": "server"}))
    return objects


def _policy(tier: str) -> Object:
    """The ingress policy for servers of a tier. It has one rule per role, so that no single rule allows both."""
    ports = [{"port": port, "protocol": name} for name, port in OPEN.items()]
    rules = [{"from": [{"podSelector": {"matchLabels": {"role": role}}}], "ports": ports} for role in ROLES["friend"]]
    spec = {"podSelector": {"matchLabels": {"tier": tier}}, "policyTypes": ["Ingress"], "ingress": rules}
    return _network_policy(NAMESPACE, f"to-{tier}", spec)


def _egress() -> Object:
    """The egress policy of friends, which may connect only to servers. So the probes also test egress."""
    rules = [{"to": [{"podSelector": {"matchLabels": {"tier": tier}}}]} for tier in TIERS]
    spec = {"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"], "egress": rules}
    return _network_policy(NAMESPACE, "friends", spec)


def _network_policy(namespace: str, name: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _service(namespace: str, name: str, selector: dict[str, str]) -> Object:
    ports = [
        {"name": protocol.lower(), "port": port, "targetPort": OPEN[protocol], "protocol": protocol}
        for protocol, port in SERVICE.items()
    ]
    spec = {"selector": selector, "ports": ports}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def batch(number: int, size: int) -> list[Object]:
    """The objects of one batch: a Service, a policy, and last the pods."""
    name = f"b{number}"
    labels = {"batch": name}
    rules = [{"from": [{"podSelector": {"matchLabels": labels}}]}]
    spec = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": rules}
    ports: list[Object] = [{"containerPort": 80, "protocol": "TCP"}]
    pods = [
        pod(CHURN, f"{name}-{index}", NODES[index % 2], labels | {"index": str(index)}, ports) for index in range(size)
    ]
    return [_network_policy(CHURN, name, spec), _service(CHURN, name, labels), *pods]


def marker(number: int) -> Object:
    """A pod that no other object affects, on the node whose agent is not killed, to measure the time until Ready."""
    return pod(CHURN, f"marker{number}", WATCHED, {"marker": str(number)})
