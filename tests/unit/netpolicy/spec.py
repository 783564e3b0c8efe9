"""A second reading of NetworkPolicy, straight from the API reference, over the raw objects and one packet at a time.

Written apart from the engine and slow on purpose: it shares no code with it, not even its parser.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Obj = dict[str, Any]


def allowed(
    policies: list[Obj], namespaces: dict[str, dict[str, str]], src: Obj, dst: Obj, proto: str, port: int
) -> bool:
    """`src` and `dst`: {"namespace", "labels", "ports": [[port, protocol, name]], "ip"}; labels None: outside."""
    return direction_allowed(policies, namespaces, "Egress", src, dst, dst, proto, port) and direction_allowed(
        policies, namespaces, "Ingress", dst, src, dst, proto, port
    )


def direction_allowed(
    policies: list[Obj],
    namespaces: dict[str, dict[str, str]],
    kind: str,
    me: Obj,
    other: Obj,
    dst: Obj,
    proto: str,
    port: int,
) -> bool:
    """Is the packet fine with the policies of `me`, in one direction?"""
    if me["labels"] is None:
        return True
    isolated = False
    for policy in policies:
        spec = policy["spec"]
        where = policy["metadata"]["namespace"]
        types = spec.get("policyTypes")
        if not types:
            types = ["Ingress"] + (["Egress"] if spec.get("egress") else [])
        if kind not in types or where != me["namespace"] or not selected(spec.get("podSelector", {}), me["labels"]):
            continue
        isolated = True
        for rule in spec.get(kind.lower()) or []:
            peers = rule.get("from" if kind == "Ingress" else "to")
            if peers and not any(is_peer(peer, where, other, namespaces) for peer in peers):
                continue
            ports = rule.get("ports")
            if not ports or any(is_port(entry, dst, proto, port) for entry in ports):
                return True
    return not isolated


def is_peer(peer: Obj, where: str, other: Obj, namespaces: dict[str, dict[str, str]]) -> bool:
    if "ipBlock" in peer:
        ip = ipaddress.ip_address(other["ip"])
        inside = ip in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return inside and all(ip not in ipaddress.ip_network(out) for out in peer["ipBlock"].get("except", []))
    if other["labels"] is None:
        return False
    if "namespaceSelector" not in peer:
        return other["namespace"] == where and selected(peer["podSelector"], other["labels"])
    if not selected(peer["namespaceSelector"], namespaces[other["namespace"]]):
        return False
    return "podSelector" not in peer or selected(peer["podSelector"], other["labels"])


def is_port(entry: Obj, dst: Obj, proto: str, port: int) -> bool:
    if entry.get("protocol", "TCP") != proto:
        return False
    wanted = entry.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return [port, proto, wanted] in [list(p) for p in dst["ports"]]
    if "endPort" in entry:
        return wanted <= port <= entry["endPort"]
    return port == wanted


def selected(selector: Obj, labels: dict[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or []:
        key, values = term["key"], term.get("values", [])
        ok = {
            "In": key in labels and labels[key] in values,
            "NotIn": not (key in labels and labels[key] in values),
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[term["operator"]]
        if not ok:
            return False
    return True
