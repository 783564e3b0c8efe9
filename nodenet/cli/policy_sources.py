"""Reads the objects for `nodenet policy` from manifests or from a running lab's API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from netpolicy import objects
from netpolicy.cluster import Cluster
from netpolicy.types import PolicyError
from nodenet import manifests
from nodenet.errors import BadInputError

_LAB_KINDS = ("Node", "Namespace", "Pod", "Service", "NetworkPolicy")
# Workloads that create pods. One without pods is included too, because a policy may select its future pods. (A
# ReplicaSet belongs to a Deployment.)
_LAB_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def from_files(paths: Sequence[Path], namespace: str) -> Cluster:
    """All objects of the manifests. Raises BadInputError naming file, object and field."""
    loaded = manifests.load(paths)
    if not loaded:
        raise BadInputError(
            f"{', '.join(map(str, paths))}: no Kubernetes objects", "give YAML files or a folder with YAML files"
        )
    for manifest in loaded:
        _read([manifest.data], namespace, strict=True, source=f"{manifest.source}: ")
    return _read([manifest.data for manifest in loaded], namespace, strict=True)


def from_lab(name: str) -> Cluster:
    """The current objects of a running lab's API, with real pod names and addresses."""
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    kinds = (*_LAB_KINDS, *_LAB_WORKLOADS)
    return _read([obj for kind in kinds for obj in client.objects(kind)], "default", strict=False, live=True)


def _read(
    data: Iterable[dict[str, Any]], namespace: str, strict: bool, source: str = "", live: bool = False
) -> Cluster:
    try:
        return objects.cluster(data, namespace, strict, live=live)
    except PolicyError as error:
        raise BadInputError(f"{source}{error}", "correct this field, as the API server would refuse it too") from error
