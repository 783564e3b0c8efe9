"""The scale subresource: autoscaling/v1 Scale for the workloads that have spec.replicas. Pure."""

from __future__ import annotations

from typing import Any

from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import bad_request, invalid, invalid_object
from nodenet.lab.apiserver.tables import selector_text

Obj = dict[str, Any]


def of(obj: Obj) -> Obj:
    """The Scale of a stored workload."""
    metadata = {
        key: obj["metadata"][key]
        for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if key in obj["metadata"]
    }
    selector = selector_text(obj["spec"].get("selector") or {})
    status = {"replicas": (obj.get("status") or {}).get("replicas", 0), "selector": selector}
    spec = {"replicas": obj["spec"].get("replicas", 0)}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}


def into(obj: Obj, wanted: Obj, resource: Resource) -> Obj:
    """The workload with the replicas and the resourceVersion of the Scale. An old resourceVersion causes a conflict."""
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    name = obj["metadata"]["name"]
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise bad_request(f"Scale {name}: spec.replicas: expected a whole number, got {replicas!r}", resource)
    if replicas < 0:
        cause = invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise invalid_object(resource, name, [cause])
    version = (wanted.get("metadata") or {}).get("resourceVersion", "")
    metadata = {**obj["metadata"], "resourceVersion": version or obj["metadata"]["resourceVersion"]}
    return {**obj, "metadata": metadata, "spec": {**obj["spec"], "replicas": replicas}}
