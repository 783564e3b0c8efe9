"""Names what the objects of manifests use and a lab does not serve. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from nodenet.compile.services import has_frontends, not_served
from nodenet.kinds import SERVICE
from nodenet.kube.decode import DecodeError, decode
from nodenet.model import Service

Object = Mapping[str, Any]
_MOST = 20
# In place of the ClusterIPs that the API server assigns.
_ASSIGNED = (ip_address("10.96.0.1"), ip_address("fd00::1"))
_TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"


def unserved(objects: Iterable[Object]) -> list[str]:
    """One sentence for each field without effect, with its object: the first ones, and how many more there are."""
    found = [f"{_name(obj)}: {sentence}" for obj in objects for sentence in _of(obj)]
    more = len(found) - _MOST
    return [*found[:_MOST], f"and {more} more"] if more > 0 else found


def _of(obj: Object) -> Iterator[str]:
    if obj["kind"] == "Service":
        yield from _of_service(obj)
    elif spec := _pod_spec(obj):
        yield from _of_pod(spec)


def _of_service(obj: Object) -> Iterator[str]:
    try:
        decoded = decode(SERVICE, json.dumps(obj).encode())
    except DecodeError as error:
        yield str(error)
        return
    service = decoded.obj
    if not isinstance(service, Service):
        return
    if _gets_an_address(obj):
        service = replace(service, cluster_ips=_ASSIGNED)
    if not has_frontends(service):
        return
    spec, annotations = obj.get("spec") or {}, obj["metadata"].get("annotations") or {}
    yield from not_served(service)
    if spec.get("type") == "LoadBalancer":
        yield (
            "spec.type LoadBalancer: no controller of the lab gives it an address; "
            "kubectl patch --subresource=status sets status.loadBalancer"
        )
    for place, asked in (
        ("spec.trafficDistribution", spec.get("trafficDistribution")),
        (f"metadata.annotations[{_TOPOLOGY_MODE}]", annotations.get(_TOPOLOGY_MODE)),
    ):
        if asked:
            yield f"{place} {asked}: no controller of the lab writes topology hints, so all endpoints are used"


def _gets_an_address(obj: Object) -> bool:
    """Whether the API server assigns a ClusterIP, which manifests seldom name."""
    spec = obj.get("spec") or {}
    return spec.get("type") != "ExternalName" and not spec.get("clusterIP") and not spec.get("clusterIPs")


def _pod_spec(obj: Object) -> Object | None:
    """The spec of a pod, or of the pods that a workload makes."""
    spec: Any = obj.get("spec") or {}
    if obj["kind"] == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    if obj["kind"] != "Pod":
        spec = (spec.get("template") or {}).get("spec")
    return spec if isinstance(spec, Mapping) else None


def _of_pod(spec: Object) -> Iterator[str]:
    # A pod in the node's network has its ports there anyway.
    if spec.get("hostNetwork"):
        return
    containers: Sequence[Object] = spec.get("containers") or ()
    for container in containers:
        for port in container.get("ports") or ():
            if port.get("hostPort") and port.get("protocol") == "SCTP":
                yield f"container {container.get('name')}: hostPort {port['hostPort']}: SCTP is not served"


def _name(obj: Object) -> str:
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{obj['kind']} {namespace}/{metadata['name']}" if namespace else f"{obj['kind']} {metadata['name']}"
