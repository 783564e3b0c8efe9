"""Small clusters and arbitrary policies over them, dense enough that rules really meet pods and addresses."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMESPACES = ("x", "y", "z")
_KEYS = ("app", "tier", "kubernetes.io/metadata.name")
_VALUES = ("a", "b", "x")
PORTS = (79, 80, 81, 82, 443, 8080)
PROTOCOLS = ("TCP", "UDP", "SCTP")
_PORT_NAMES = ("http", "dns", "none")
_BLOCKS = {
    "0.0.0.0/0": ("10.0.0.0/8", "10.0.0.0/30", "10.0.0.1/32", "192.0.2.0/24"),
    "10.0.0.0/8": ("10.0.0.0/29", "10.0.0.2/32", "10.0.0.4/30"),
    "10.0.0.0/29": ("10.0.0.0/30", "10.0.0.1/32", "10.0.0.5/32"),
    "10.0.0.2/31": ("10.0.0.2/32",),
    "10.0.0.3/32": (),
    "192.0.2.0/24": ("192.0.2.128/25",),
    "::/0": ("2001:db8::/32", "2001:db8::2/128"),
    "2001:db8::/64": ("2001:db8::/126", "2001:db8::1/128"),
}

# Addresses outside the cluster that packets also come from and go to.
OUTSIDE = ("192.0.2.1", "192.0.2.200", "8.8.8.8", "2001:db8::ff", "2600::1")


def labels() -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(_KEYS[:2]), st.sampled_from(_VALUES), max_size=2)


@st.composite
def expressions(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
    term: dict[str, Any] = {"key": draw(st.sampled_from(_KEYS)), "operator": operator}
    if operator in ("In", "NotIn"):
        term["values"] = draw(st.lists(st.sampled_from(_VALUES), min_size=1, max_size=2, unique=True))
    return term


@st.composite
def selectors(draw: st.DrawFn) -> dict[str, Any]:
    return {
        **draw(st.sampled_from(({}, {"matchLabels": draw(labels())}))),
        **draw(st.sampled_from(({}, {"matchExpressions": draw(st.lists(expressions(), max_size=2))}))),
    }


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    cidr = draw(st.sampled_from(sorted(_BLOCKS)))
    holes = draw(st.lists(st.sampled_from(_BLOCKS[cidr]), max_size=2, unique=True)) if _BLOCKS[cidr] else []
    return {"ipBlock": {"cidr": cidr, **({"except": holes} if holes else {})}}


@st.composite
def peers(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.sampled_from(("pods", "namespaces", "both", "block", "block")))
    if shape == "block":
        return draw(blocks())
    peer = {}
    if shape in ("pods", "both"):
        peer["podSelector"] = draw(selectors())
    if shape in ("namespaces", "both"):
        peer["namespaceSelector"] = draw(selectors())
    return peer


@st.composite
def ports(draw: st.DrawFn) -> dict[str, Any]:
    entry: dict[str, Any] = draw(st.sampled_from(({}, {"protocol": draw(st.sampled_from(PROTOCOLS))})))
    shape = draw(st.sampled_from(("all", "number", "range", "name")))
    if shape == "number":
        return {**entry, "port": draw(st.sampled_from(PORTS))}
    if shape == "range":
        first = draw(st.sampled_from(PORTS))
        return {**entry, "port": first, "endPort": draw(st.sampled_from((first, first + 1, first + 13, 8080, 65535)))}
    if shape == "name":
        return {**entry, "port": draw(st.sampled_from(_PORT_NAMES))}
    return entry


def rules(side: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={side: st.lists(peers(), max_size=3), "ports": st.lists(ports(), max_size=2)}
    )


@st.composite
def policies(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Up to four policies with different names."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        spec: dict[str, Any] = {"podSelector": draw(selectors())}
        if draw(st.booleans()):
            spec["policyTypes"] = draw(
                st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Egress", "Ingress"], []))
            )
        if draw(st.booleans()):
            spec["ingress"] = draw(st.lists(rules("from"), max_size=2))
        if draw(st.booleans()):
            spec["egress"] = draw(st.lists(rules("to"), max_size=2))
        found.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": f"p{number}", "namespace": draw(st.sampled_from(NAMESPACES[:2]))},
                "spec": spec,
            }
        )
    return found


@st.composite
def pods(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Two to six pods with addresses inside the blocks above."""
    found = []
    for number in range(draw(st.integers(2, 6))):
        listening = [
            [draw(st.sampled_from(PORTS)), draw(st.sampled_from(PROTOCOLS)), name]
            for name in draw(st.lists(st.sampled_from(("http", "dns", "")), max_size=2, unique=True))
        ]
        family = draw(st.sampled_from(("10.0.0.", "10.0.0.", "2001:db8::")))
        found.append(
            {
                "namespace": draw(st.sampled_from(NAMESPACES)),
                "name": f"pod{number}",
                "labels": draw(labels()),
                "ip": f"{family}{number}",
                "ports": listening,
            }
        )
    return found


def namespaces() -> st.SearchStrategy[dict[str, dict[str, str]]]:
    return st.fixed_dictionaries({name: labels() for name in NAMESPACES}).map(
        lambda found: {name: {**own, "kubernetes.io/metadata.name": name} for name, own in found.items()}
    )


# Nodes outside the pods' addresses; one of the addresses is in a network of the rules too.
NODES = (
    {"name": "n1", "labels": {"app": "a"}, "ips": ["192.0.2.1"]},
    {"name": "n2", "labels": {"tier": "b"}, "ips": ["8.8.8.8", "2600::1"]},
)
_NETWORKS = ("0.0.0.0/0", "10.0.0.0/29", "10.0.0.2/31", "10.0.0.1/32", "192.0.2.0/24", "::/0", "2001:db8::/126")


@st.composite
def cluster_pods(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"namespaces": draw(selectors())}
    return {"pods": {"namespaceSelector": draw(selectors()), "podSelector": draw(selectors())}}


@st.composite
def cluster_peers(draw: st.DrawFn, side: str) -> dict[str, Any]:
    shape = draw(st.sampled_from(("pods", "pods", "networks", "networks", "nodes", "domains")))
    if side == "from" or shape == "pods":
        return draw(cluster_pods())
    if shape == "networks":
        return {"networks": draw(st.lists(st.sampled_from(_NETWORKS), min_size=1, max_size=3, unique=True))}
    if shape == "nodes":
        return {"nodes": draw(selectors())}
    return {"domainNames": ["*.example.com"]}


@st.composite
def protocols(draw: st.DrawFn, named: bool) -> dict[str, Any]:
    shape = draw(st.sampled_from(("number", "range", "name") if named else ("number", "range")))
    if shape == "name":
        return {"destinationNamedPort": draw(st.sampled_from(_PORT_NAMES))}
    first = draw(st.sampled_from(PORTS))
    last = first + draw(st.sampled_from((1, 13, 1000)))
    found = {"number": first} if shape == "number" else {"range": {"start": first, "end": last}}
    return {draw(st.sampled_from(("tcp", "udp", "sctp"))): {"destinationPort": found}}


@st.composite
def cluster_rules(draw: st.DrawFn, side: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"action": draw(st.sampled_from(("Accept", "Deny", "Pass")))}
    rule[side] = draw(st.lists(cluster_peers(side), min_size=1, max_size=2))
    if draw(st.booleans()):
        nameless = any(key in peer for peer in rule[side] for key in ("networks", "nodes", "domainNames"))
        rule["protocols"] = draw(st.lists(protocols(not nameless), min_size=1, max_size=2))
    return rule


@st.composite
def cluster_policies(draw: st.DrawFn, most: int = 4) -> list[dict[str, Any]]:
    """Policies of both tiers, some of the same priority."""
    found = []
    for number in range(draw(st.integers(0, most))):
        spec: dict[str, Any] = {
            "tier": draw(st.sampled_from(("Admin", "Admin", "Baseline"))),
            "priority": draw(st.sampled_from((0, 1, 1, 500, 1000))),
            "subject": draw(cluster_pods()),
        }
        for section, side in (("ingress", "from"), ("egress", "to")):
            if draw(st.booleans()):
                spec[section] = draw(st.lists(cluster_rules(side), max_size=3))
        found.append(
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha2",
                "kind": "ClusterNetworkPolicy",
                "metadata": {"name": f"c{number}"},
                "spec": spec,
            }
        )
    return found
