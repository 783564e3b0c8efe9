"""Validates Services (kubernetes pkg/apis/core/validation ValidateService). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netpolicy.addresses import parse_address, parse_network
from nodenet.lab.apiserver import names
from nodenet.lab.apiserver.status import Cause, duplicate, forbidden, invalid, required, unsupported
from nodenet.lab.apiserver.validate_values import PROTOCOLS, check_choice, check_port

Obj = Mapping[str, Any]
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILIES = ("IPv4", "IPv6")
POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
TRAFFIC = ("Cluster", "Local")
DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")


def check_service(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    found = check_choice(spec, "type", TYPES, "spec")
    found += names.check_labels(spec.get("selector") or {}, "spec.selector")
    found += _affinity(spec)
    if "ipFamilyPolicy" in spec:
        found += check_choice(spec, "ipFamilyPolicy", POLICIES, "spec")
    for key in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if key in spec:
            found += check_choice(spec, key, TRAFFIC, "spec")
    if spec.get("trafficDistribution"):
        found += check_choice(spec, "trafficDistribution", DISTRIBUTIONS, "spec")
    found += _addresses(spec)
    if spec.get("type") == "ExternalName":
        return found + _external_name(spec)
    return found + _ports(spec)


def _external_name(spec: Obj) -> list[Cause]:
    name = spec.get("externalName", "")
    found = []
    if not name:
        found.append(required("spec.externalName"))
    elif problem := names.subdomain_problem(name.rstrip(".").lower()):
        found.append(invalid("spec.externalName", name, problem))
    if spec.get("clusterIP"):
        found.append(forbidden("spec.clusterIP", "may not be set for ExternalName services"))
    return found


def _affinity(spec: Obj) -> list[Cause]:
    found = check_choice(spec, "sessionAffinity", ("ClientIP", "None"), "spec")
    seconds = (spec.get("sessionAffinityConfig") or {}).get("clientIP", {}).get("timeoutSeconds")
    if seconds is not None and not 0 < seconds <= 86400:
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        found.append(invalid(path, seconds, "must be greater than 0 and less than 86400"))
    return found


def _addresses(spec: Obj) -> list[Cause]:
    found = []
    wanted = [("spec.clusterIP", spec["clusterIP"])] if spec.get("clusterIP") else []
    listed = spec.get("clusterIPs") or []
    wanted += [(f"spec.clusterIPs[{i}]", value) for i, value in enumerate(listed)]
    for path, value in wanted:
        if value not in ("None", "") and not _is_ip(value):
            found.append(invalid(path, value, "must be empty, 'None', or a valid IP address"))
    if listed and spec.get("clusterIP", listed[0]) != listed[0]:
        found.append(invalid("spec.clusterIPs[0]", listed[0], "must be the same as spec.clusterIP"))
    for index, value in enumerate(spec.get("externalIPs") or ()):
        if not _is_ip(value):
            found.append(invalid(f"spec.externalIPs[{index}]", value, "must be a valid IP address"))
    for index, value in enumerate(spec.get("ipFamilies") or ()):
        if value not in FAMILIES:
            found.append(unsupported(f"spec.ipFamilies[{index}]", value, FAMILIES))
    for index, value in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        if not _is_cidr(value):
            found.append(invalid(f"spec.loadBalancerSourceRanges[{index}]", value, "must be a valid CIDR"))
    return found


def _is_ip(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def _is_cidr(text: str) -> bool:
    try:
        parse_network(text.strip())
    except ValueError:
        return False
    return True


def _ports(spec: Obj) -> list[Cause]:
    ports = spec.get("ports") or []
    headless = spec.get("clusterIP") == "None"
    if not ports and not headless:
        return [required("spec.ports")]
    found: list[Cause] = []
    seen_names: set[str] = set()
    seen: set[tuple[object, object]] = set()
    seen_nodes: set[tuple[object, object]] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        found += _port(port, path, len(ports) > 1, seen_names)
        key = (port.get("port"), port.get("protocol"))
        if key in seen:
            found.append(duplicate(path, f"{key[1]} {key[0]}"))
        seen.add(key)
        if port.get("nodePort"):
            found += _node_port(port, path, spec, seen_nodes)
    return found


def _port(port: Obj, path: str, several: bool, seen: set[str]) -> list[Cause]:
    found: list[Cause] = []
    name = port.get("name", "")
    if not name and several:
        found.append(required(f"{path}.name"))
    elif name and (problem := names.label_problem(name)):
        found.append(invalid(f"{path}.name", name, problem))
    elif name in seen:
        found.append(duplicate(f"{path}.name", name))
    if name:
        seen.add(name)
    if "port" in port:
        found += check_port(port["port"], f"{path}.port")
    else:
        found.append(required(f"{path}.port"))
    found += check_choice(port, "protocol", PROTOCOLS, path)
    target = port.get("targetPort")
    if isinstance(target, int):
        # A targetPort that defaults to the port would repeat the problem of the port.
        found += check_port(target, f"{path}.targetPort") if target != port.get("port") else []
    elif target is not None and (problem := names.port_name_problem(target)):
        found.append(invalid(f"{path}.targetPort", target, problem))
    return found


def _node_port(port: Obj, path: str, spec: Obj, seen: set[tuple[object, object]]) -> list[Cause]:
    if spec.get("type") not in ("NodePort", "LoadBalancer"):
        return [forbidden(f"{path}.nodePort", f"may not be used when `type` is '{spec.get('type')}'")]
    key = (port["nodePort"], port.get("protocol"))
    found = [duplicate(f"{path}.nodePort", port["nodePort"])] if key in seen else []
    seen.add(key)
    return found
