"""The objects of a large cluster as JSON of the API: copies of one real object of each kind, with other names and
addresses. Pure.

objects.json is from Kubernetes 1.36, as an API server stores the objects of a running pod, with managedFields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

_TEMPLATES: dict[str, Any] = json.loads((Path(__file__).parent / "objects.json").read_text())
_FIRST_POD = int(IPv4Address("10.128.0.1"))
_FIRST_SERVICE = int(IPv4Address("10.96.0.10"))
_FIRST_NODE = int(IPv4Address("172.31.0.11"))
# Nodes have networks with 256 addresses, as controller managers assign them.
_POD_NETWORK = 256

# What a change of each kind is: the fields that differ afterwards.
Change = Callable[[Any, int], None]


@dataclass(frozen=True, slots=True)
class World:
    """The size of the cluster. Pods belong to `apps` Deployments: their labels make so many identities."""

    pods: int = 10_000
    services: int = 10_000
    nodes: int = 100
    apps: int = 1_000
    namespaces: int = 50
    policies: int = 100
    endpoints: int = 2

    def counts(self) -> dict[str, int]:
        return {
            "pods": self.pods,
            "namespaces": self.namespaces,
            "nodes": self.nodes,
            "services": self.services,
            "endpointslices": self.services,
            "networkpolicies": self.policies,
        }


def node_name(index: int) -> str:
    return f"n{index}"


def node_address(index: int) -> str:
    return str(IPv4Address(_FIRST_NODE + index))


def pod_address(world: World, index: int) -> str:
    node, number = index % world.nodes, index // world.nodes
    return str(IPv4Address(_FIRST_POD + node * _POD_NETWORK + number + 1))


def make(world: World, kind: str, index: int, version: int) -> dict[str, Any]:
    """Object number `index` of a kind."""
    obj: dict[str, Any] = json.loads(json.dumps(_TEMPLATES[kind]))
    metadata = obj["metadata"]
    metadata["uid"] = f"{index:08x}-{kind[:4].encode().hex()[:4]}-4622-9b50-45bac88be70d"
    metadata["resourceVersion"] = str(version)
    _FILL[kind](world, obj, index)
    return obj


def _app(world: World, index: int) -> tuple[str, str]:
    """Namespace and name of a Deployment."""
    number = index % world.apps
    return f"shop{number % world.namespaces}", f"app{number}"


def _pod(world: World, obj: Any, index: int) -> None:
    namespace, app = _app(world, index)
    node = index % world.nodes
    address = pod_address(world, index)
    obj["metadata"] |= {
        "name": f"{app}-898664f99-{index:05d}",
        "namespace": namespace,
        "labels": {"app": app, "pod-template-hash": "898664f99", "tier": "web", "version": "v1"},
    }
    obj["metadata"]["ownerReferences"][0]["name"] = f"{app}-898664f99"
    obj["spec"]["nodeName"] = node_name(node)
    obj["status"] |= {
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": node_address(node),
        "hostIPs": [{"ip": node_address(node)}],
    }


def _namespace(world: World, obj: Any, index: int) -> None:
    name = f"shop{index}"
    obj["metadata"] |= {"name": name, "labels": {"kubernetes.io/metadata.name": name}}


def _node(world: World, obj: Any, index: int) -> None:
    name = node_name(index)
    cidr = f"{IPv4Address(_FIRST_POD - 1 + index * _POD_NETWORK)}/24"
    obj["metadata"]["name"] = name
    obj["metadata"]["labels"]["kubernetes.io/hostname"] = name
    obj["spec"] |= {"podCIDR": cidr, "podCIDRs": [cidr]}
    obj["status"]["addresses"] = [
        {"type": "InternalIP", "address": node_address(index)},
        {"type": "Hostname", "address": name},
    ]


def _service(world: World, obj: Any, index: int) -> None:
    namespace, app = _app(world, index)
    address = str(IPv4Address(_FIRST_SERVICE + index))
    obj["metadata"] |= {"name": f"svc{index}", "namespace": namespace, "labels": {"app": app}}
    obj["spec"] |= {"clusterIP": address, "clusterIPs": [address], "selector": {"app": app}}


def _slice(world: World, obj: Any, index: int) -> None:
    namespace, app = _app(world, index)
    obj["metadata"] |= {"name": f"svc{index}-2scv9", "namespace": namespace}
    obj["metadata"]["labels"] |= {"app": app, "kubernetes.io/service-name": f"svc{index}"}
    obj["metadata"]["ownerReferences"][0]["name"] = f"svc{index}"
    endpoint = obj["endpoints"][0]
    obj["endpoints"] = []
    for number in range(world.endpoints if world.pods else 0):
        pod = (index * world.endpoints + number) % world.pods
        target = endpoint["targetRef"] | {"namespace": namespace, "name": f"{app}-898664f99-{pod:05d}"}
        obj["endpoints"].append(
            endpoint
            | {
                "addresses": [pod_address(world, pod)],
                "targetRef": target,
                "nodeName": node_name(pod % world.nodes),
                "conditions": dict(endpoint["conditions"]),
            }
        )


def _policy(world: World, obj: Any, index: int) -> None:
    namespace, app = _app(world, index)
    obj["metadata"] |= {"name": f"policy{index}", "namespace": namespace}
    obj["spec"]["podSelector"]["matchLabels"] = {"app": app}


_FILL: dict[str, Callable[[World, Any, int], None]] = {
    "pods": _pod,
    "namespaces": _namespace,
    "nodes": _node,
    "services": _service,
    "endpointslices": _slice,
    "networkpolicies": _policy,
}


def _restart(obj: Any, round_: int) -> None:
    """A container restarted: nothing that concerns the network."""
    obj["status"]["containerStatuses"][0]["restartCount"] = round_


def _heartbeat(obj: Any, round_: int) -> None:
    """The kubelet reports an unchanged status, every five minutes."""
    obj["status"]["conditions"][0]["lastHeartbeatTime"] = f"2026-01-01T00:{round_ % 60:02d}:00Z"


def _ready(obj: Any, round_: int) -> None:
    """The first endpoint becomes unready, or ready again."""
    obj["endpoints"][0]["conditions"] |= {"ready": round_ % 2 == 0, "serving": round_ % 2 == 0}


def _label(obj: Any, round_: int) -> None:
    """Another version is rolled out: another identity."""
    obj["metadata"]["labels"]["version"] = f"v{round_ + 1}"


CHANGES: dict[str, tuple[str, Change]] = {
    "pod status": ("pods", _restart),
    "pod labels": ("pods", _label),
    "node heartbeat": ("nodes", _heartbeat),
    "endpoint readiness": ("endpointslices", _ready),
}
