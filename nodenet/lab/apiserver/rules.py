"""Rules for the fields that clients may set, and for those that never change. Pure.

These are the "strategies" of kubernetes pkg/registry: only the status subresource changes status, only the server sets
system metadata, and some fields are immutable.
"""

from __future__ import annotations

from typing import Any

from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.status import Cause, forbidden, invalid

Obj = dict[str, Any]
SYSTEM = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
# The kubelet creates a Node together with its status. The other two kinds have no status.
_KEEPS_STATUS = ("Node",)
_WITHOUT_STATUS = ("NetworkPolicy", "EndpointSlice")
IMMUTABLE = "field is immutable"


def prepare_create(resource: Resource, obj: Obj) -> None:
    """Remove the fields that a client cannot set in a new object."""
    for key in (*SYSTEM, "managedFields"):
        obj["metadata"].pop(key, None)
    if not _has_own_status(resource):
        obj.pop("status", None)


def _has_own_status(resource: Resource) -> bool:
    """True if a client may create the object with a status. In a custom resource without the status subresource,
    status is a field like any other."""
    return resource.key in _KEEPS_STATUS or (resource.custom and "status" not in resource.subresources)


def prepare_update(resource: Resource, obj: Obj, old: Obj) -> None:
    """Prepare an ordinary update: system metadata and status keep their stored values."""
    obj["metadata"].pop("managedFields", None)
    for key in SYSTEM:
        obj["metadata"].pop(key, None)
        if key in old["metadata"]:
            obj["metadata"][key] = old["metadata"][key]
    kind = resource.key
    if not (resource.custom and "status" not in resource.subresources):
        obj.pop("status", None)
        if "status" in old and kind not in _WITHOUT_STATUS:
            obj["status"] = old["status"]
    if kind == "Namespace":
        obj["spec"] = old["spec"]
    if kind == "Service" and isinstance(obj.get("spec"), dict):
        _drop_what_the_type_had(obj["spec"], old["spec"])
    if kind == "Job":
        obj.setdefault("spec", {}).setdefault("selector", old["spec"].get("selector"))


_TYPES = {
    "nodePort": ("NodePort", "LoadBalancer"),
    "externalTrafficPolicy": ("NodePort", "LoadBalancer"),
    "healthCheckNodePort": ("LoadBalancer",),
    "allocateLoadBalancerNodePorts": ("LoadBalancer",),
    "loadBalancerClass": ("LoadBalancer",),
    "clusterIP": ("ClusterIP", "NodePort", "LoadBalancer"),
    "clusterIPs": ("ClusterIP", "NodePort", "LoadBalancer"),
    "ipFamilies": ("ClusterIP", "NodePort", "LoadBalancer"),
    "ipFamilyPolicy": ("ClusterIP", "NodePort", "LoadBalancer"),
    "internalTrafficPolicy": ("ClusterIP", "NodePort", "LoadBalancer"),
}


def _drop_what_the_type_had(spec: Obj, old: Obj) -> None:
    """On a change of type, remove the fields that the new type does not have, unless the client has changed them
    (dropTypeDependentFields)."""
    kind = spec.get("type", "ClusterIP")
    gone = {key for key, types in _TYPES.items() if old.get("type") in types and kind not in types}
    for key in gone & spec.keys():
        if spec[key] == old.get(key):
            del spec[key]
    ports = [port.get("nodePort") for port in spec.get("ports") or ()]
    if "nodePort" in gone and ports == [port.get("nodePort") for port in old.get("ports") or ()]:
        spec["ports"] = [{k: v for k, v in port.items() if k != "nodePort"} for port in spec["ports"]]
    if spec.get("sessionAffinity", "None") == "None" and old.get("sessionAffinity") == "ClientIP":
        spec.pop("sessionAffinityConfig", None)


def status_update(obj: Obj, old: Obj) -> Obj:
    """An update of the status subresource: everything else keeps its stored value."""
    return {**old, "status": obj.get("status") or {}, "metadata": dict(old["metadata"])}


def sort_keys(obj: Obj) -> Obj:
    """Put apiVersion, kind and metadata first, for readers."""
    head: Obj = {key: obj[key] for key in ("apiVersion", "kind", "metadata") if key in obj}
    return {**head, **{key: value for key, value in obj.items() if key not in head}}


_FIXED: dict[str, tuple[str, ...]] = {
    "Deployment": ("selector",),
    "ReplicaSet": ("selector",),
    "DaemonSet": ("selector",),
    "Job": ("selector", "completionMode", "template"),
}
_STATEFUL_SET_MAY = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)
_POD_MAY = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates")


def check_update(kind: str, obj: Obj, old: Obj) -> list[Cause]:
    """A problem for each changed field that is immutable."""
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    found = [
        invalid(f"spec.{key}", "...", IMMUTABLE)
        for key in _FIXED.get(kind, ())
        if new_spec.get(key) != old_spec.get(key) and not (kind == "Job" and key == "template" and _waits(old))
    ]
    if kind == "Pod":
        found += _pod(new_spec, old_spec)
    elif kind == "StatefulSet":
        changed = {k for k in {*new_spec, *old_spec} if new_spec.get(k) != old_spec.get(k)}
        if changed - set(_STATEFUL_SET_MAY):
            names = ", ".join(f"'{name}'" for name in _STATEFUL_SET_MAY)
            message = f"updates to statefulset spec for fields other than {names} are forbidden"
            found.append(forbidden("spec", message))
    elif kind == "Service":
        found += _service(new_spec, old_spec)
    elif kind == "Node" and old_spec.get("podCIDRs") and new_spec.get("podCIDRs") != old_spec["podCIDRs"]:
        found.append(forbidden("spec.podCIDRs", "node updates may not change podCIDRs except from empty to valid"))
    elif kind == "EndpointSlice" and obj.get("addressType") != old.get("addressType"):
        found.append(invalid("addressType", obj.get("addressType"), IMMUTABLE))
    return found


def _waits(job: Obj) -> bool:
    """True for a suspended Job that has not started. Its scheduling directives may still change (KEP-2926)."""
    return bool(job["spec"].get("suspend")) and "startTime" not in (job.get("status") or {})


def _pod(new: Obj, old: Obj) -> list[Cause]:
    # The nodeSelector and affinity of a pod with scheduling gates may still change (KEP-3838).
    may = (*_POD_MAY, "nodeSelector", "affinity") if old.get("schedulingGates") else _POD_MAY

    def fixed(spec: Obj) -> Obj:
        rest = {key: value for key, value in spec.items() if key not in may}
        for section in ("containers", "initContainers"):
            rest[section] = [{k: v for k, v in c.items() if k != "image"} for c in spec.get(section) or ()]
        return rest

    if fixed(new) == fixed(old):
        return []
    message = "pod updates may not change fields other than `spec.containers[*].image`, `spec.activeDeadlineSeconds`"
    return [forbidden("spec", message + ", `spec.tolerations`, `spec.terminationGracePeriodSeconds`")]


def _service(new: Obj, old: Obj) -> list[Cause]:
    if "ExternalName" in (new.get("type"), old.get("type")):
        return []
    had, wanted = old.get("clusterIP"), new.get("clusterIP")
    if had and wanted is not None and wanted != had:
        return [invalid("spec.clusterIPs[0]", wanted, "may not change once set")]
    return []
