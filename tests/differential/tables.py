"""Any Services with any fields, as hypothesis makes them, and the objects of the API for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st

from nodenet.compile.backends import Here, candidates_of, choose
from nodenet.model import EndpointSlice, ObjectRef, Protocol, ServicePort, SliceEndpoint

NAMESPACE = "diff"
TARGET = 8080
# Each Service has ten.
FIRST_NODE_PORT = 30000
ZONES = {"node1": "zone-a", "node2": "zone-b"}
# Pods that answer, three on each node.
BACKENDS = {f"b{number}": "node1" if number <= 3 else "node2" for number in range(1, 7)}
PORTS = (("tcp", 80), ("udp", 80), ("tcp", 81))
# Networks of sources: the fabric, the pods of node1, one without hosts, everything.
RANGES = (
    ("172.30.0.0/24", "fd00:172:30::/64"),
    ("10.244.1.0/24", "fd00:10:244:1::/64"),
    ("192.0.2.0/24", "2001:db8:9::/64"),
    ("0.0.0.0/0", "::/0"),
)
FAMILIES = {"dual": (4, 6), "v4": (4,), "v6": (6,)}
_CONDITIONS = {"ready": (True, True, False), "not ready": (False, False, False), "draining": (False, True, True)}
_NAMES = {4: "IPv4", 6: "IPv6"}


@dataclass(frozen=True)
class End:
    backend: str
    condition: str
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """One Service; `number` makes its addresses and ports."""

    families: tuple[int, ...]
    ends: tuple[End, ...]
    node_port: bool
    balanced: bool
    proxied: bool
    external: bool
    shared: bool
    ranges: tuple[int, ...]
    sticky: bool
    internal_local: bool
    external_local: bool
    not_ready_too: bool
    number: int = 0

    @property
    def name(self) -> str:
        return f"s{self.number:02}"

    @property
    def usable(self) -> bool:
        """Whether the cluster has an endpoint for it."""
        return any(end.condition != "not ready" or self.not_ready_too for end in self.ends)

    @property
    def has_node_port(self) -> bool:
        return self.node_port or self.balanced

    @property
    def words(self) -> str:
        """The fields that are not at their defaults."""
        flags = [name for name in self.__dataclass_fields__ if getattr(self, name) is True]
        ends = [f"{e.backend} {e.condition} {' '.join((*e.zones, *e.nodes))}".strip() for e in self.ends]
        return f"{self.name} ({', '.join(flags)}; ranges {list(self.ranges)}; {', '.join(ends) or 'no endpoint'})"

    def node_ports(self) -> dict[tuple[str, int], int]:
        base = FIRST_NODE_PORT + 10 * self.number
        return {port: base + index for index, port in enumerate(PORTS)} if self.has_node_port else {}

    def balancer(self, family: int) -> str:
        return f"203.0.113.{self.number + 1}" if family == 4 else f"2001:db8:1::{self.number + 1:x}"

    def external_ips(self, family: int) -> list[str]:
        own = f"198.51.100.{self.number + 1}" if family == 4 else f"2001:db8:2::{self.number + 1:x}"
        shared = "198.51.100.250" if family == 4 else "2001:db8:2::fa"
        return [own] * self.external + [shared] * self.shared


def _ends() -> st.SearchStrategy[tuple[End, ...]]:
    def hints(kind: str) -> st.SearchStrategy[tuple[tuple[str, ...], tuple[str, ...]]]:
        zones = st.lists(st.sampled_from(sorted(ZONES.values())), min_size=1, max_size=2, unique=True).map(tuple)
        nodes = st.lists(st.sampled_from(sorted(ZONES)), min_size=1, max_size=1).map(tuple)
        none: st.SearchStrategy[tuple[str, ...]] = st.just(())
        return st.tuples(zones if kind == "zones" else none, nodes if kind == "nodes" else none)

    def of(kind: str) -> st.SearchStrategy[tuple[End, ...]]:
        conditions = st.sampled_from([*_CONDITIONS, "ready", "ready"])
        one = st.tuples(st.sampled_from(sorted(BACKENDS)), conditions, hints(kind))
        # hypothesis prefers the first of them.
        several = st.sampled_from([3, 2, 4, 1, 4, 3, 0]).flatmap(
            lambda size: st.lists(one, min_size=size, max_size=size, unique_by=lambda end: end[0])
        )
        return several.map(lambda ends: tuple(End(b, condition, *hint) for b, condition, hint in ends))

    return st.sampled_from(["none", "none", "zones", "nodes"]).flatmap(of)


def specs() -> st.SearchStrategy[Spec]:
    """Half of the Services have every field at its default, the others any."""
    ranges = st.lists(st.integers(0, len(RANGES) - 1), max_size=2, unique=True).map(tuple)
    flag = st.booleans()
    families = st.sampled_from(sorted(FAMILIES)).map(lambda name: FAMILIES[name])
    rare = st.sampled_from([False, False, False, True])
    return st.builds(Spec, families, _ends(), flag, flag, rare, flag, rare, ranges, flag, rare, flag, rare)


def service(spec: Spec) -> dict[str, Any]:
    """The object without its status."""
    ports = [
        {"name": f"{protocol}{number}", "protocol": protocol.upper(), "port": number, "targetPort": TARGET}
        | ({"nodePort": spec.node_ports()[protocol, number]} if spec.has_node_port else {})
        for protocol, number in PORTS
    ]
    kind = "LoadBalancer" if spec.balanced else "NodePort" if spec.node_port else "ClusterIP"
    externals = [ip for family in spec.families for ip in spec.external_ips(family)]
    body: dict[str, Any] = {"type": kind, "ports": ports, "publishNotReadyAddresses": spec.not_ready_too}
    body |= {"ipFamilies": [_NAMES[family] for family in spec.families]}
    body |= {"ipFamilyPolicy": "RequireDualStack" if len(spec.families) > 1 else "SingleStack"}
    body |= {"sessionAffinity": "ClientIP" if spec.sticky else "None"}
    body |= {"internalTrafficPolicy": "Local" if spec.internal_local else "Cluster"}
    if externals:
        body["externalIPs"] = externals
    if externals or kind != "ClusterIP":
        body["externalTrafficPolicy"] = "Local" if spec.external_local else "Cluster"
    if spec.balanced and spec.external_local:
        body["healthCheckNodePort"] = FIRST_NODE_PORT + 10 * spec.number + 9
    if spec.balanced and spec.ranges:
        body["loadBalancerSourceRanges"] = [text for index in spec.ranges for text in RANGES[index]]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": spec.name, "namespace": NAMESPACE}} | {
        "spec": body
    }


def balancer_status(spec: Spec) -> dict[str, Any]:
    mode = "Proxy" if spec.proxied else "VIP"
    return {"loadBalancer": {"ingress": [{"ip": spec.balancer(f), "ipMode": mode} for f in spec.families]}}


def slices(spec: Spec, ips: dict[tuple[str, int], str]) -> Iterator[dict[str, Any]]:
    """`ips`: the address of each backend by family."""
    for family in spec.families:
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{spec.name}-{family}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": spec.name, "endpointslice.kubernetes.io/managed-by": "test"},
            },
            "addressType": _NAMES[family],
            "ports": [{"name": f"{p}{n}", "protocol": p.upper(), "port": TARGET} for p, n in PORTS],
            "endpoints": [_endpoint(end, ips[end.backend, family]) for end in spec.ends],
        }


def _endpoint(end: End, address: str) -> dict[str, Any]:
    conditions = dict(zip(("ready", "serving", "terminating"), _CONDITIONS[end.condition], strict=True))
    found: dict[str, Any] = {"addresses": [address], "nodeName": BACKENDS[end.backend], "conditions": conditions}
    hints = {"forZones": [{"name": z} for z in end.zones], "forNodes": [{"name": n} for n in end.nodes]}
    if any(hints.values()):
        found["hints"] = {key: value for key, value in hints.items() if value}
    return found


def sets(spec: Spec, node: str) -> dict[str, frozenset[str]]:
    """The backends for both traffic policies on a node."""
    names = {ip_address(index): end.backend for index, end in enumerate(spec.ends, 1)}
    ends = tuple(
        SliceEndpoint(
            (ip_address(index),),
            *_CONDITIONS[end.condition],
            BACKENDS[end.backend],
            for_zones=end.zones,
            for_nodes=end.nodes,
        )
        for index, end in enumerate(spec.ends, 1)
    )
    ref, port = ObjectRef(NAMESPACE, spec.name), ServicePort("p", Protocol.TCP, TARGET)
    candidates = candidates_of([EndpointSlice(ref, ref, (port,), ends)], spec.not_ready_too).get(
        ("p", Protocol.TCP), {}
    )
    here = Here(node, ZONES[node])
    return {
        word: frozenset(names[address] for address, _ in choose(candidates, 4, here, local=word == "Local").used)
        for word in ("Cluster", "Local")
    }
