"""A second reading of NetworkPolicy and ClusterNetworkPolicy, straight from the API reference, over the raw objects and
one packet at a time.

Written apart from the engine and slow on purpose: it shares no code with it, not even its parser.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Obj = dict[str, Any]


def allowed(
    policies: list[Obj],
    namespaces: dict[str, dict[str, str]],
    src: Obj,
    dst: Obj,
    proto: str,
    port: int,
    nodes: tuple[Obj, ...] = (),
) -> bool:
    """`src` and `dst`: {"namespace", "labels", "ports": [[port, protocol, name]], "ip"}; labels None: outside.

    `nodes`: {"labels", "ips"}. `policies`: of both kinds.
    """
    return side_allowed(policies, namespaces, "Egress", src, dst, dst, proto, port, nodes) and side_allowed(
        policies, namespaces, "Ingress", dst, src, dst, proto, port, nodes
    )


def side_allowed(
    policies: list[Obj],
    namespaces: dict[str, dict[str, str]],
    kind: str,
    me: Obj,
    other: Obj,
    dst: Obj,
    proto: str,
    port: int,
    nodes: tuple[Obj, ...] = (),
) -> bool:
    """The three tiers, one after the other."""
    if me["labels"] is None:
        return True
    of_cluster = [p for p in policies if p.get("kind") == "ClusterNetworkPolicy"]
    of_namespaces = [p for p in policies if p.get("kind") != "ClusterNetworkPolicy"]
    answer = tier_answer(of_cluster, namespaces, "Admin", kind, me, other, dst, proto, port, nodes)
    if answer in ("Accept", "Deny"):
        return answer == "Accept"
    if any(isolates(policy, kind, me) for policy in of_namespaces):
        return direction_allowed(of_namespaces, namespaces, kind, me, other, dst, proto, port)
    return tier_answer(of_cluster, namespaces, "Baseline", kind, me, other, dst, proto, port, nodes) != "Deny"


def tier_answer(
    policies: list[Obj],
    namespaces: dict[str, dict[str, str]],
    tier: str,
    kind: str,
    me: Obj,
    other: Obj,
    dst: Obj,
    proto: str,
    port: int,
    nodes: tuple[Obj, ...],
) -> str:
    """The action of the first rule of a tier that matches; "" if none does."""
    mine = [p for p in policies if p["spec"]["tier"] == tier]
    for policy in sorted(mine, key=lambda p: (p["spec"]["priority"], p["metadata"]["name"])):
        if not cluster_pods(policy["spec"]["subject"], me, namespaces):
            continue
        for rule in policy["spec"].get(kind.lower()) or []:
            peers = rule["from" if kind == "Ingress" else "to"]
            if any("domainNames" in peer for peer in peers):
                # Not enforced: an Accept rule matches nothing, and others deny everything.
                if rule["action"] == "Accept":
                    continue
                return "Deny"
            if not any(is_cluster_peer(peer, other, namespaces, nodes) for peer in peers):
                continue
            wanted = rule.get("protocols")
            if wanted is None or any(is_protocol(entry, dst, proto, port) for entry in wanted):
                return str(rule["action"])
    return ""


def cluster_pods(selection: Obj, pod: Obj, namespaces: dict[str, dict[str, str]]) -> bool:
    """`namespaces`, or `pods` with both selectors."""
    if pod["labels"] is None:
        return False
    own = namespaces[pod["namespace"]]
    if "namespaces" in selection:
        return selected(selection["namespaces"], own)
    pods = selection["pods"]
    return selected(pods["namespaceSelector"], own) and selected(pods["podSelector"], pod["labels"])


def is_cluster_peer(peer: Obj, other: Obj, namespaces: dict[str, dict[str, str]], nodes: tuple[Obj, ...]) -> bool:
    if "networks" in peer:
        ip = ipaddress.ip_address(other["ip"])
        return any(ip in ipaddress.ip_network(network, strict=False) for network in peer["networks"])
    if "nodes" in peer:
        return any(other["ip"] in node["ips"] and selected(peer["nodes"], node["labels"]) for node in nodes)
    return cluster_pods(peer, other, namespaces)


def is_protocol(entry: Obj, dst: Obj, proto: str, port: int) -> bool:
    if "destinationNamedPort" in entry:
        return [port, proto, entry["destinationNamedPort"]] in [list(p) for p in dst["ports"]]
    if proto.lower() not in entry:
        return False
    wanted = entry[proto.lower()]["destinationPort"]
    if "range" in wanted:
        return bool(wanted["range"]["start"] <= port <= wanted["range"]["end"])
    return bool(wanted["number"] == port)


def isolates(policy: Obj, kind: str, me: Obj) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes")
    if not types:
        types = ["Ingress"] + (["Egress"] if spec.get("egress") else [])
    own = policy["metadata"]["namespace"] == me["namespace"]
    return kind in types and own and selected(spec.get("podSelector", {}), me["labels"])


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
        if not isolates(policy, kind, me):
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
