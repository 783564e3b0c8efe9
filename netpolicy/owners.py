"""Follows ownerReferences: which pods, ReplicaSets and Jobs of the input belong to which workload.

A dump of a cluster contains pods beside their owners: Pod -> ReplicaSet -> Deployment, Pod -> Job -> CronJob. All of
them are one workload.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from netpolicy.fields import Field

# Owners of pods that themselves belong to a workload, if they have an owner.
_MIDDLE = ("ReplicaSet", "Job")
# Workloads of Kubernetes' own that are above them, or create pods themselves.
TOP = ("Deployment", "StatefulSet", "DaemonSet", "CronJob", "ReplicationController")
# What the owner of a pod's ReplicaSet is, by the label with the hash that it adds to the name.
_HASHES = {"pod-template-hash": "Deployment", "rollouts-pod-template-hash": "Rollout"}
# A CronJob names its Jobs after itself and the minute.
_CRON_JOB = re.compile(r"(.+)-\d+")


class Ref(NamedTuple):
    """An object of the input, or the owner that one of them names."""

    kind: str
    namespace: str
    name: str


class Owners:
    """The owners of all objects of one input. Owners that are not in the input are found by name where that is
    certain."""

    def __init__(self, roots: Iterable[Field]) -> None:
        self._controllers: dict[Ref, Ref | None] = {}
        for root in roots:
            self._controllers[ref_of(root)] = _controller(root)

    def workload(self, root: Field) -> Ref:
        """The workload of a pod, or of an object that creates pods: itself if it has no owner.

        The owner of a Deployment is a custom resource. It is not followed: the Deployment has the labels of the pods.
        """
        found = ref_of(root)
        if found.kind in TOP:
            return found
        seen = {found}
        while (owner := self._owner(found, root)) is not None and owner not in seen:
            seen.add(owner)
            found = owner
            if found.kind not in _MIDDLE:
                break
        return found

    def above(self, root: Field) -> frozenset[Ref]:
        """Every owner of an object, directly and through others."""
        found, last = set[Ref](), ref_of(root)
        while (owner := self._owner(last, root)) is not None and owner not in found:
            found.add(owner)
            last = owner
        return frozenset(found)

    def _owner(self, ref: Ref, pod: Field) -> Ref | None:
        if ref in self._controllers:
            return self._controllers[ref]
        if ref.kind == "ReplicaSet":
            return _by_hash(ref, pod.child("metadata").child("labels").mapping())
        cron = _CRON_JOB.fullmatch(ref.name) if ref.kind == "Job" else None
        owner = Ref("CronJob", ref.namespace, cron[1]) if cron else None
        return owner if owner in self._controllers else None


def ref_of(root: Field) -> Ref:
    metadata = root.child("metadata")
    return Ref(
        str(root.mapping().get("kind")),
        str(metadata.child("namespace").value or ""),
        str(metadata.child("name").value),
    )


def _controller(root: Field) -> Ref | None:
    """The owner that controls an object, else its first one. A Node is not a workload: it owns its static pods."""
    metadata = root.child("metadata")
    owners = [item for item in metadata.child("ownerReferences").items() if item.child("kind").value != "Node"]
    owners.sort(key=lambda item: item.child("controller").value is not True)
    for item in owners[:1]:
        namespace = str(metadata.child("namespace").value or "")
        return Ref(str(item.child("kind").value), namespace, str(item.child("name").value))
    return None


def _by_hash(replica_set: Ref, labels: Mapping[str, Any]) -> Ref | None:
    """The owner of a ReplicaSet that is not in the input: its name is that of the owner and the hash."""
    for label, kind in _HASHES.items():
        suffix = f"-{labels.get(label)}"
        if label in labels and replica_set.name.endswith(suffix):
            return Ref(kind, replica_set.namespace, replica_set.name.removesuffix(suffix))
    return None
