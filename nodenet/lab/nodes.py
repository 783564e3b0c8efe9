"""Builds the Node objects that a lab's kubelets register and update. Pure."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from nodenet.lab.layout import LabPlan, NodePlan

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
# kubelet's default for --max-pods.
_MAX_PODS = "110"


def node_object(plan: LabPlan, node: NodePlan, now: str, boot_id: str) -> dict[str, Any]:
    """The Node as a kubelet registers it (not Ready), with the pod networks that the control plane would assign."""
    arch = _MACHINES.get(platform.machine(), platform.machine())
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": arch,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": arch,
    }
    cidrs = [str(network) for network in node.pod_cidrs]
    resources = {"cpu": "8", "memory": "16Gi", "pods": _MAX_PODS}
    addresses = [{"type": "InternalIP", "address": str(interface.ip)} for interface in node.addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs, "providerID": f"nodenet://{plan.name}/{node.name}"},
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": resources,
            "allocatable": resources,
            "conditions": [ready_condition(False, now)],
            "nodeInfo": {
                "architecture": arch,
                "operatingSystem": "linux",
                "osImage": "nodenet lab",
                "kernelVersion": platform.release(),
                "kubeletVersion": f"v0.0.0-nodenet-{version('nodenet')}",
                "containerRuntimeVersion": f"nodenet://{version('nodenet')}",
                "bootID": boot_id,
                "machineID": "",
                "systemUUID": "",
                "kubeProxyVersion": "",
            },
        },
    }


def ready_condition(ready: bool, now: str) -> dict[str, str]:
    """The Ready condition. Not ready means, as with a real kubelet, that the network plugin is not up."""
    reason, message = (
        ("KubeletReady", "the agent is ready") if ready else ("KubeletNotReady", "the agent does not answer")
    )
    return {
        "type": "Ready",
        "status": str(ready),
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
