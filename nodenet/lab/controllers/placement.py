"""Decides on which nodes a pod may run: nodeSelector, required node affinity, taints. Pure.

Rules: kubernetes scheduling documentation ("Assigning Pods to Nodes", "Taints and Tolerations"). Pod affinity and
topology spread constraints are not supported; the scheduler always spreads pods.
"""

from __future__ import annotations

from typing import Any

from nodenet.lab.apiserver.selectors import Requirement, matches
from nodenet.lab.apiserver.tables import is_ready

Obj = dict[str, Any]
NOT_READY = "node(s) were not ready"
UNSCHEDULABLE = "node(s) were unschedulable"
NO_MATCH = "node(s) didn't match Pod's node affinity/selector"
FULL = "Too many pods"


def selects(spec: Obj, node: Obj) -> bool:
    """True if the node matches nodeSelector and the required nodeAffinity."""
    labels = node["metadata"].get("labels") or {}
    if not (spec.get("nodeSelector") or {}).items() <= labels.items():
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    fields = {"metadata.name": node["metadata"]["name"]}
    return any(
        (term.get("matchExpressions") or term.get("matchFields"))
        and matches(_requirements(term.get("matchExpressions")), labels)
        and matches(_requirements(term.get("matchFields")), fields)
        for term in affinity.get("nodeSelectorTerms") or ()
    )


def _requirements(terms: list[Obj] | None) -> tuple[Requirement, ...]:
    return tuple(
        Requirement(t.get("key", ""), t.get("operator", ""), tuple(t.get("values") or ())) for t in terms or ()
    )


def untolerated(spec: Obj, node: Obj) -> str:
    """The first taint (key, or key=value) that the pod does not tolerate, or ""."""
    for taint in node["spec"].get("taints") or ():
        if taint.get("effect") == "PreferNoSchedule":
            continue
        if not any(_tolerates(toleration, taint) for toleration in spec.get("tolerations") or ()):
            return str(taint.get("key", "")) + (f": {taint['value']}" if taint.get("value") else "")
    return ""


def _tolerates(toleration: Obj, taint: Obj) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint.get("key")
    same_key = toleration.get("key") == taint.get("key")
    return same_key and toleration.get("value", "") == taint.get("value", "")


def capacity(node: Obj) -> int | None:
    """The maximum number of pods on the node, or None if its status does not have it."""
    text = str(((node.get("status") or {}).get("allocatable") or {}).get("pods", ""))
    return int(text) if text.isdigit() else None


def obstacle(spec: Obj, node: Obj, pods: int) -> str:
    """The reason why a pod cannot run on this node, or "". `pods`: the number of pods on the node."""
    if not is_ready(node):
        return NOT_READY
    if node["spec"].get("unschedulable"):
        return UNSCHEDULABLE
    if taint := untolerated(spec, node):
        return f"node(s) had untolerated taint {{{taint}}}"
    if not selects(spec, node):
        return NO_MATCH
    limit = capacity(node)
    return FULL if limit is not None and pods >= limit else ""
