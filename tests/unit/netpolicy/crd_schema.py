"""Checks an object with the schema of its CustomResourceDefinition, as an API server does: structural rules, sets, and
the CEL rules that this definition has, by their text. It shares no code with the engine's parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import yaml

Obj = Any
FILE = Path(__file__).parents[2] / "data" / "clusternetworkpolicy" / "crd.yaml"
_TYPES = {"object": dict, "array": list, "string": str, "integer": int}


def schema() -> Obj:
    definition = yaml.safe_load(FILE.read_text())
    (version,) = definition["spec"]["versions"]
    assert version["name"] == "v1alpha2"
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def is_cidr(text: str) -> bool:
    """The CIDR library of Kubernetes' CEL: netip.ParsePrefix, and no IPv4-mapped addresses."""
    address, slash, bits = text.partition("/")
    if not slash or not re.fullmatch(r"0|[1-9][0-9]*", bits) or "%" in text:
        return False
    try:
        found = ip_interface(f"{address}/{bits}").ip
    except ValueError:
        return False
    return getattr(found, "ipv4_mapped", None) is None


def _names_fit(rule: Obj) -> bool:
    nameless = any({"networks", "nodes", "domainNames"} & peer.keys() for peer in rule["to"])
    return not (nameless and any("destinationNamedPort" in entry for entry in rule.get("protocols", [])))


_RULES: dict[str, Callable[[Obj], bool]] = {
    "self.start < self.end": lambda port: bool(port["start"] < port["end"]),
    "isCIDR(self)": is_cidr,
    "!(self.to.exists(peer, has(peer.networks) || has(peer.nodes) || has(peer.domainNames)) && has(self.protocols) && "
    "self.protocols.exists(protocol, has(protocol.destinationNamedPort)))": _names_fit,
}


def refused(value: Obj, rules: Obj, path: str = "spec") -> set[str]:
    """The paths of the fields that the schema refuses, and of unknown ones. Rules in CEL are evaluated only for a value
    without other problems."""
    kind = rules["type"]
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        return {path}
    found = _own(value, rules, path)
    if kind == "object":
        known = rules.get("properties")
        found |= {f"{path}.{key}" for key in rules.get("required", ()) if key not in value}
        for key, item in value.items():
            if known is None:
                found |= refused(item, rules["additionalProperties"], f"{path}[{key}]")
            elif key not in known:
                found.add(f"{path}.{key}")
            else:
                found |= refused(item, known[key], f"{path}.{key}")
    elif kind == "array":
        for place, item in enumerate(value):
            found |= refused(item, rules["items"], f"{path}[{place}]")
    if not found and not all(_RULES[each["rule"]](value) for each in rules.get("x-kubernetes-validations", ())):
        found = {path}
    return found


def _own(value: Obj, rules: Obj, path: str) -> set[str]:
    """Problems of the value itself, and of items that a set has twice."""
    wrong = "enum" in rules and value not in rules["enum"]
    if isinstance(value, int):
        wrong |= not rules.get("minimum", value) <= value <= rules.get("maximum", value)
    elif isinstance(value, str):
        wrong |= len(value) > rules.get("maxLength", len(value))
        wrong |= "pattern" in rules and re.search(rules["pattern"].replace("$", r"\Z"), value) is None
    else:
        noun = "Items" if isinstance(value, list) else "Properties"
        wrong |= not rules.get(f"min{noun}", 0) <= len(value) <= rules.get(f"max{noun}", len(value))
    found = {path} if wrong else set()
    if rules.get("x-kubernetes-list-type") == "set":
        found |= {f"{path}[{place}]" for place, item in enumerate(value) if item in value[:place]}
    return found
