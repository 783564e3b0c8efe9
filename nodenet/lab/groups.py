"""The paths of a lab's cgroups in the cgroup v2 tree. The lab changes no other cgroup."""

from __future__ import annotations

from pathlib import Path

from nodenet.lab import names
from nodenet.link.cgroups import mount_point

# The lab's own daemon runs here.
CONTROL = "control"


def lab_root(lab: str) -> Path:
    return mount_point() / names.cgroup_root(lab)


def node_root(lab: str, node: str) -> Path:
    return lab_root(lab) / node


def node_system(lab: str, node: str) -> Path:
    """The cgroup in which the node's agent and CNI plugins run."""
    return node_root(lab, node) / "system"


def pod_group(lab: str, node: str, namespace: str, pod: str) -> Path:
    return node_root(lab, node) / "pods" / names.pod_cgroup(namespace, pod)


def labs() -> list[str]:
    """Names of the labs that have a cgroup, whether they run or not."""
    prefix = names.cgroup_root("")
    return sorted(path.name.removeprefix(prefix) for path in mount_point().glob(f"{prefix}*") if path.is_dir())
