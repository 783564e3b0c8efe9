"""Finds the pod or Service that a command line argument names: by name, prefix or workload. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nodenet.errors import BadInputError

Object = Mapping[str, Any]

_WORKLOADS = {
    "deploy": "Deployment",
    "deployment": "Deployment",
    "sts": "StatefulSet",
    "statefulset": "StatefulSet",
    "ds": "DaemonSet",
    "daemonset": "DaemonSet",
    "rs": "ReplicaSet",
    "replicaset": "ReplicaSet",
    "job": "Job",
}


def full_name(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


def owner(pod: Object) -> tuple[str, str]:
    """(kind, name) of the workload that a pod belongs to, as a user would name it. A pod without an owner is its own
    workload."""
    metadata = pod["metadata"]
    for reference in metadata.get("ownerReferences") or ():
        kind, name = reference["kind"], reference["name"]
        template = (metadata.get("labels") or {}).get("pod-template-hash", "")
        if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
            return "Deployment", name.removesuffix(f"-{template}")
        return kind, name
    return "Pod", metadata["name"]


def split(word: str, namespace: str) -> tuple[str, str]:
    """Split `NS/NAME` or `NAME` (in `namespace`). A kind such as `deploy` in `deploy/NAME` is not a namespace."""
    head, slash, rest = word.partition("/")
    if not slash or head in _WORKLOADS or head in ("pod", "po"):
        return namespace, word
    return head, rest


def pod(pods: Iterable[Object], word: str, namespace: str) -> Object:
    """The pod for `[NS/]NAME`, for a prefix of the name, or for `[NS/]deploy/NAME`. If several pods of one workload
    match, the first by name.

    Raises BadInputError that lists the existing pods, or the candidates if a prefix matches several workloads.
    """
    space, name = split(word, namespace)
    here = sorted((p for p in pods if p["metadata"]["namespace"] == space), key=full_name)
    found = [p for p in _matching(here, name) if "deletionTimestamp" not in p["metadata"]]
    if not found:
        known = ", ".join(p["metadata"]["name"] for p in here) or "none"
        raise BadInputError(f"no pod {name!r} in namespace {space}", f"pods there: {known}")
    if len({owner(p) for p in found}) > 1:
        candidates = ", ".join(p["metadata"]["name"] for p in found)
        raise BadInputError(f"pod {name!r} in namespace {space} could be any of: {candidates}", "say more of its name")
    return found[0]


def _matching(pods: Sequence[Object], name: str) -> Sequence[Object]:
    kind, slash, workload = name.partition("/")
    if slash:
        if kind in ("pod", "po"):
            return [p for p in pods if p["metadata"]["name"] == workload]
        return [p for p in pods if owner(p) == (_WORKLOADS.get(kind), workload)]
    exact = [p for p in pods if p["metadata"]["name"] == name]
    owned = [p for p in pods if owner(p)[1] == name]
    return exact or owned or [p for p in pods if p["metadata"]["name"].startswith(name)]


def service(services: Iterable[Object], word: str, namespace: str) -> Object:
    """The Service for `svc/NAME`, `svc/NAME.NS` or `NS/svc/NAME`. Raises BadInputError that lists the existing ones."""
    _, _, rest = word.rpartition("svc/")
    name, _, own = rest.partition(".")
    space = own.partition(".")[0] or namespace
    listed = list(services)
    for found in listed:
        if (found["metadata"]["namespace"], found["metadata"]["name"]) == (space, name):
            return found
    known = ", ".join(s["metadata"]["name"] for s in listed if s["metadata"]["namespace"] == space) or "none"
    raise BadInputError(f"no Service {name!r} in namespace {space}", f"Services there: {known}")
