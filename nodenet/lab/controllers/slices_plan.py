"""Computes the EndpointSlices of a Service from its pods. Pure.

Rules: kubernetes pkg/controller/endpointslice and KEP-752, KEP-1672. Each address family and set of resolved ports has
its own slices, with at most 100 endpoints each. An endpoint stays in its slice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from nodenet.lab.apiserver.tables import is_ready

Obj = dict[str, Any]
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"
LIMIT = 100
_VERSIONS = {"IPv4": 4, "IPv6": 6}


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """The writes: slices to create, slices to update (with their new content), slices to delete."""

    create: list[Obj]
    update: list[Obj]
    delete: list[Obj]


def plan(service: Obj, pods: Iterable[Obj], zones: dict[str, str], existing: Sequence[Obj]) -> SlicePlan:
    """Compute the writes. `zones`: by node name. `existing`: the slices that this controller manages for the
    Service."""
    wanted = _wanted(service, pods, zones)
    labels = slice_labels(service)
    result = SlicePlan([], [], [])
    for family in _families(service):
        have = [s for s in existing if s["addressType"] == family]
        groups = wanted.get(family) or {"[]": ([], [])}
        result.delete.extend(s for s in have if ports_key(s.get("ports") or []) not in groups)
        for key, (ports, endpoints) in groups.items():
            same = [s for s in have if ports_key(s.get("ports") or []) == key]
            _fill(result, service, family, ports, endpoints, same, labels)
    result.delete.extend(s for s in existing if s["addressType"] not in _families(service))
    return result


def _families(service: Obj) -> list[str]:
    return service["spec"].get("ipFamilies") or ["IPv4"]


def slice_labels(service: Obj) -> dict[str, str]:
    """The labels of a slice: those of the Service, and those that refer to the Service."""
    own = service["metadata"].get("labels") or {}
    labels = {key: value for key, value in own.items() if key != HEADLESS}
    labels |= {SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER}
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    return labels


Groups = dict[str, tuple[list[Obj], list[Obj]]]


def _wanted(service: Obj, pods: Iterable[Obj], zones: dict[str, str]) -> dict[str, Groups]:
    """By address family, then by set of resolved ports: the ports and the endpoints."""
    found: dict[str, Groups] = {}
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            continue
        ports = resolve_ports(service, pod)
        addresses = [entry["ip"] for entry in status.get("podIPs") or [{"ip": status.get("podIP", "")}] if entry["ip"]]
        for family in _families(service):
            own = [a for a in addresses if ip_address(a).version == _VERSIONS[family]]
            if own:
                group = found.setdefault(family, {}).setdefault(ports_key(ports), (ports, []))
                group[1].append(_endpoint(service, pod, own[0], zones))
    return found


def resolve_ports(service: Obj, pod: Obj) -> list[Obj]:
    """The slice ports for this pod. A named targetPort is resolved to the pod's port of that name, or left out if the
    pod has none."""
    found = []
    for port in service["spec"].get("ports") or ():
        target = port.get("targetPort", port["port"])
        number = target if isinstance(target, int) else _named_port(pod, target, port["protocol"])
        if number:
            entry = {"name": port.get("name", ""), "protocol": port["protocol"], "port": number}
            found.append(entry | ({"appProtocol": port["appProtocol"]} if port.get("appProtocol") else {}))
    return found


def _named_port(pod: Obj, name: str, protocol: str) -> int:
    sidecars = [c for c in pod["spec"].get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*(pod["spec"].get("containers") or ()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return 0


def ports_key(ports: Sequence[Obj]) -> str:
    """A text that is equal for equal sets of ports."""
    return json.dumps(sorted(json.dumps(port, sort_keys=True) for port in ports))


def _endpoint(service: Obj, pod: Obj, address: str, zones: dict[str, str]) -> Obj:
    metadata, spec = pod["metadata"], pod["spec"]
    serving, terminating = is_ready(pod), "deletionTimestamp" in metadata
    ready = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating)
    target = {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
    endpoint: Obj = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": target,
    }
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    if spec.get("nodeName"):
        endpoint["nodeName"] = spec["nodeName"]
        if zone := zones.get(spec["nodeName"]):
            endpoint["zone"] = zone
    return endpoint


def _who(endpoint: Obj) -> tuple[str, str]:
    return (endpoint.get("targetRef") or {}).get("uid", ""), endpoint["addresses"][0]


def _fill(
    result: SlicePlan,
    service: Obj,
    family: str,
    ports: list[Obj],
    endpoints: list[Obj],
    existing: list[Obj],
    labels: dict[str, str],
) -> None:
    """Keep each endpoint in its slice. Add new ones to slices with room, the rest to new slices."""
    left = {_who(endpoint): endpoint for endpoint in endpoints}
    kept = []
    for old in existing:
        stay = [left.pop(_who(e)) for e in old.get("endpoints") or () if _who(e) in left]
        kept.append((old, stay))
    fresh = list(left.values())
    # Fill the fullest slices first, so that few slices change.
    for _, stay in sorted(kept, key=lambda pair: -len(pair[1])):
        room = LIMIT - len(stay)
        stay.extend(fresh[:room])
        fresh = fresh[room:]
    placeholder = not endpoints
    for old, stay in kept:
        if not stay and not placeholder:
            result.delete.append(old)
            continue
        placeholder = placeholder and bool(stay)
        new = {**old, "endpoints": stay, "ports": ports}
        new["metadata"] = {**old["metadata"], "labels": labels}
        if new != old:
            result.update.append(new)
    for start in range(0, len(fresh), LIMIT):
        result.create.append(_new(service, family, ports, fresh[start : start + LIMIT], labels))
    if placeholder:
        result.create.append(_new(service, family, ports, [], labels))


def _new(service: Obj, family: str, ports: list[Obj], endpoints: list[Obj], labels: dict[str, str]) -> Obj:
    metadata = service["metadata"]
    owner = {"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": metadata["name"] + "-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
    }
