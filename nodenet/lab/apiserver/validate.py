"""Validates objects by kind. Reports all problems of an object, each with the path of the field. Pure.

The rules are those of kubernetes pkg/apis/*/validation, for the fields that the lab supports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from netpolicy.addresses import parse_address, parse_network
from nodenet.kinds import CLUSTER_NETWORK_POLICY
from nodenet.lab.apiserver import names, policy
from nodenet.lab.apiserver.selectors import from_object, matches
from nodenet.lab.apiserver.status import Cause, duplicate, forbidden, invalid, required, unsupported
from nodenet.lab.apiserver.validate_service import check_service
from nodenet.lab.apiserver.validate_values import PROTOCOLS, check_choice, check_not_negative, check_port

Obj = Mapping[str, Any]


def check(kind: str, obj: Obj) -> list[Cause]:
    """All problems of an object of `kind`, after decoding and defaults."""
    found = names.check_metadata(kind, obj["metadata"])
    special = _BY_KIND.get(kind)
    return found + (special(obj) if special else [])


def check_pod_spec(spec: Obj, path: str, restart: tuple[str, ...] = ("Always", "OnFailure", "Never")) -> list[Cause]:
    found = check_choice(spec, "restartPolicy", restart, path)
    if not spec.get("containers"):
        found.append(required(f"{path}.containers"))
    seen: set[str] = set()
    for section in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(section) or ()):
            found += _check_container(container, f"{path}.{section}[{index}]", seen)
    found += names.check_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    if problem := names.subdomain_problem(spec["nodeName"]) if spec.get("nodeName") else "":
        found.append(invalid(f"{path}.nodeName", spec["nodeName"], problem))
    return found


def _check_container(container: Obj, path: str, seen: set[str]) -> list[Cause]:
    found: list[Cause] = []
    name = container.get("name", "")
    if not name:
        found.append(required(f"{path}.name"))
    elif problem := names.label_problem(name):
        found.append(invalid(f"{path}.name", name, problem))
    elif name in seen:
        found.append(duplicate(f"{path}.name", name))
    seen.add(name)
    if not container.get("image"):
        found.append(required(f"{path}.image"))
    port_names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        found += _check_container_port(port, f"{path}.ports[{index}]", port_names)
    for index, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            found.append(required(f"{path}.env[{index}].name"))
    return found


def _check_container_port(port: Obj, path: str, seen: set[str]) -> list[Cause]:
    found = check_choice(port, "protocol", PROTOCOLS, path)
    if "containerPort" not in port:
        found.append(required(f"{path}.containerPort"))
    else:
        found += check_port(port["containerPort"], f"{path}.containerPort")
    if port.get("hostPort"):
        found += check_port(port["hostPort"], f"{path}.hostPort")
    name = port.get("name", "")
    if name and (problem := names.port_name_problem(name)):
        found.append(invalid(f"{path}.name", name, problem))
    elif name in seen:
        found.append(duplicate(f"{path}.name", name))
    if name:
        seen.add(name)
    return found


def _pod(obj: Obj) -> list[Cause]:
    found = check_pod_spec(obj["spec"], "spec")
    for index, entry in enumerate((obj.get("status") or {}).get("podIPs") or ()):
        if not _is_address(entry.get("ip", "")):
            found.append(invalid(f"status.podIPs[{index}].ip", entry.get("ip", ""), "must be a valid IP address"))
    return found


def _template(spec: Obj, restart: tuple[str, ...]) -> list[Cause]:
    template = spec.get("template")
    if not template:
        return [required("spec.template")]
    labels = template.get("metadata", {}).get("labels") or {}
    found = names.check_labels(labels, "spec.template.metadata.labels")
    return found + check_pod_spec(template.get("spec") or {}, "spec.template.spec", restart)


def _selected_template(spec: Obj) -> list[Cause]:
    """A workload's selector is required, must not be empty, and must match its own pods."""
    selector = spec.get("selector")
    found = _template(spec, ("Always",))
    if selector is None:
        return [required("spec.selector"), *found]
    problems = names.check_selector(selector, "spec.selector")
    if problems:
        return problems + found
    if not (selector.get("matchLabels") or selector.get("matchExpressions")):
        found.append(invalid("spec.selector", {}, "empty selector is invalid for this workload"))
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if not matches(from_object(selector) or (), labels):
        message = "`selector` does not match template `labels`"
        found.append(invalid("spec.template.metadata.labels", dict(labels), message))
    return found


def _replicated(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    return check_not_negative(spec, "replicas", "spec") + _selected_template(spec)


def _deployment(obj: Obj) -> list[Cause]:
    strategy = obj["spec"]["strategy"]
    found = check_choice(strategy, "type", ("Recreate", "RollingUpdate"), "spec.strategy")
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling:
        message = "may not be specified when strategy `type` is 'Recreate'"
        found.append(forbidden("spec.strategy.rollingUpdate", message))
    if isinstance(rolling, dict):
        values = [rolling.get(key) for key in ("maxUnavailable", "maxSurge")]
        for key, value in zip(("maxUnavailable", "maxSurge"), values, strict=True):
            if not _int_or_percent(value):
                path = f"spec.strategy.rollingUpdate.{key}"
                found.append(invalid(path, value, "must be a whole number of pods or a percentage such as 25%"))
        if all(str(value) in ("0", "0%") for value in values):
            message = "may not be 0 when `maxSurge` is 0"
            found.append(invalid("spec.strategy.rollingUpdate.maxUnavailable", 0, message))
    return found + _replicated(obj)


def _int_or_percent(value: object) -> bool:
    if isinstance(value, str):
        return value.endswith("%") and value[:-1].isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stateful_set(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    found = check_choice(spec, "podManagementPolicy", ("OrderedReady", "Parallel"), "spec")
    found += check_choice(spec["updateStrategy"], "type", ("RollingUpdate", "OnDelete"), "spec.updateStrategy")
    return found + _replicated(obj)


def _daemon_set(obj: Obj) -> list[Cause]:
    strategy = obj["spec"]["updateStrategy"]
    found = check_choice(strategy, "type", ("RollingUpdate", "OnDelete"), "spec.updateStrategy")
    return found + _selected_template(obj["spec"])


def _job(obj: Obj) -> list[Cause]:
    spec = obj["spec"]
    found = []
    for key in ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        found += check_not_negative(spec, key, "spec")
    found += check_choice(spec, "completionMode", ("NonIndexed", "Indexed"), "spec")
    return found + _template(spec, ("OnFailure", "Never"))


def _is_address(text: str, version: int = 0) -> bool:
    """The API server's check of stored addresses: leading zeros are accepted, and an IPv4-mapped address counts as
    IPv4."""
    try:
        found = parse_address(text)
    except ValueError:
        return False
    return version in (0, found.version)


_FAMILIES = {"IPv4": 4, "IPv6": 6}


def _endpoint_slice(obj: Obj) -> list[Cause]:
    found: list[Cause] = []
    family = obj.get("addressType", "")
    if not family:
        found.append(required("addressType"))
    elif family not in (*_FAMILIES, "FQDN"):
        found.append(unsupported("addressType", family, ("FQDN", *_FAMILIES)))
    endpoints, ports = obj.get("endpoints") or [], obj.get("ports") or []
    if len(endpoints) > 1000:
        found.append(
            Cause("endpoints", f"Too many: {len(endpoints)}: must have at most 1000 items", "FieldValueTooMany")
        )
    for index, endpoint in enumerate(endpoints):
        addresses = endpoint.get("addresses") or []
        if not addresses:
            found.append(required(f"endpoints[{index}].addresses", "must contain at least 1 address"))
        for place, address in enumerate(addresses):
            if family in _FAMILIES and not _is_address(address, _FAMILIES[family]):
                path = f"endpoints[{index}].addresses[{place}]"
                found.append(invalid(path, address, f"must be a valid {family} address"))
    seen: set[str] = set()
    for index, port in enumerate(ports):
        found += _slice_port(port, f"ports[{index}]", seen)
    return found


def _slice_port(port: Obj, path: str, seen: set[str]) -> list[Cause]:
    name = port.get("name", "")
    found = [duplicate(f"{path}.name", name)] if name in seen else []
    seen.add(name)
    if name and (problem := names.label_problem(name)):
        found.append(invalid(f"{path}.name", name, problem))
    found += check_choice(port, "protocol", PROTOCOLS, path)
    return found


def _node(obj: Obj) -> list[Cause]:
    found: list[Cause] = []
    spec = obj["spec"]
    cidrs = spec.get("podCIDRs") or []
    for index, text in enumerate(cidrs):
        try:
            parse_network(text)
        except ValueError as error:
            found.append(invalid(f"spec.podCIDRs[{index}]", text, f"must be a valid CIDR: {error}"))
    if spec.get("podCIDR") and cidrs and cidrs[0] != spec["podCIDR"]:
        found.append(invalid("spec.podCIDRs[0]", cidrs[0], f"must be the same as spec.podCIDR {spec['podCIDR']}"))
    return found


def _event(obj: Obj) -> list[Cause]:
    """An Event must be in the namespace of its object. Events about cluster-scoped objects may be in the namespaces
    below (core validation)."""
    about, own = obj.get("involvedObject") or {}, obj["metadata"].get("namespace", "")
    theirs = about.get("namespace", "")
    if theirs == own or (not theirs and own in ("default", "kube-system")):
        return []
    return [invalid("involvedObject.namespace", theirs, "does not match event.namespace")]


def _definition(obj: Obj) -> list[Cause]:
    spec, name = obj["spec"], obj["metadata"].get("name", "")
    found = [required(f"spec.{key}") for key in ("group", "scope", "versions") if not spec.get(key)]
    found += [required(f"spec.names.{key}") for key in ("plural", "kind") if not spec["names"].get(key)]
    if found:
        return found
    found += check_choice(spec, "scope", ("Cluster", "Namespaced"), "spec")
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    if name != wanted:
        found.append(invalid("metadata.name", name, f'must be spec.names.plural+"."+spec.group ({wanted})'))
    if "." not in spec["group"]:
        found.append(invalid("spec.group", spec["group"], "should be a domain with at least one dot"))
    for index, version in enumerate(spec["versions"]):
        if problem := names.label_problem(version.get("name", ""), letter_first=True):
            found.append(invalid(f"spec.versions[{index}].name", version.get("name", ""), problem))
    if sum(1 for version in spec["versions"] if version.get("storage")) != 1:
        found.append(invalid("spec.versions", "...", "must have exactly one version marked as storage version"))
    return found


_BY_KIND: dict[str, Callable[[Obj], list[Cause]]] = {
    "CustomResourceDefinition": _definition,
    "Event": _event,
    "Pod": _pod,
    "Deployment": _deployment,
    "ReplicaSet": _replicated,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Job": _job,
    "Service": check_service,
    "NetworkPolicy": policy.check,
    CLUSTER_NETWORK_POLICY.resource.qualified: policy.check_cluster,
    "EndpointSlice": _endpoint_slice,
    "Node": _node,
}
