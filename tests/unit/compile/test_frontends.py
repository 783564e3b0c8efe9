"""The addresses on which a Service is served: ClusterIP, NodePort, load balancer and external ones."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nodenet.abi import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    U32,
    AddressFlag,
    AddressKey,
    AddressPort,
    FrontendFlag,
    FrontendKey,
    FrontendScope,
)
from nodenet.compile import compile_once
from nodenet.compile import services as rules
from nodenet.compile.backends import Here
from nodenet.compile.ids import Ids
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.compile.services import FrontendKind, frontends_of
from nodenet.compile.slots import restore
from nodenet.compile.state import LocalNode, NodePorts
from nodenet.model import Protocol, Service, SliceEndpoint
from tests.unit.compile.build import TCP, UDP, node, service, slice_, store_of
from tests.unit.compile.test_lb import VIP, VIP6, answers

NODE4, NODE6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
HERE = Here("node1", "", (NODE4, NODE6))
PORTS = [("", TCP, 80, 30080)]


def compiled(*services: Service, here: Here = HERE, backends: Any = ("10.0.0.1",)) -> ServiceTables:
    slices = [slice_(one.ref.name, *backends) for one in services]
    return ServiceCompiler(Ids()).compile({s.ref: s for s in services}, {s.ref: s for s in slices}, here)


def places(one: Service, here: Here = HERE) -> list[tuple[str, str, int]]:
    return [(f.kind.name, str(f.address.addr), f.address.port) for f in frontends_of(one, [], here).values()]


def ips(*texts: str) -> tuple[Any, ...]:
    return tuple(map(ip_address, texts))


def test_every_kind_of_address() -> None:
    one = service(
        "web", VIP, ports=PORTS, load_balancer_ips=ips("203.0.113.1"), external_ips=ips("198.51.100.1", "198.51.100.2")
    )
    assert places(one) == [
        ("CLUSTER_IP", VIP, 80),
        ("NODE_PORT", "192.0.2.1", 30080),
        ("LOAD_BALANCER", "203.0.113.1", 80),
        ("EXTERNAL_IP", "198.51.100.1", 80),
        ("EXTERNAL_IP", "198.51.100.2", 80),
    ]
    tables = compiled(one)
    for address, port in ((VIP, 80), ("192.0.2.1", 30080), ("203.0.113.1", 80), ("198.51.100.2", 80)):
        assert answers(tables, address, port) == ["10.0.0.1:8080"]
        assert AddressPort(ip_address(address), port, TCP) in tables.revnat.values(), "replies get this address"
    assert not tables.warnings


def test_only_a_cluster_ip_refuses_its_other_ports() -> None:
    """An address of the node has the kubelet's port and SSH."""
    tables = compiled(service("web", VIP, ports=PORTS, external_ips=ips("198.51.100.1")))
    assert tables.addresses == {
        AddressKey(ip_address(VIP)): U32(AddressFlag.REFUSE_UNSERVED),
        AddressKey(NODE4): U32(0),
        AddressKey(ip_address("198.51.100.1")): U32(0),
    }


def test_the_families_are_those_of_the_cluster_ips() -> None:
    more: dict[str, Any] = {"ports": PORTS, "external_ips": ips("198.51.100.1", "2001:db8:1::1")}
    assert [place[1] for place in places(service("a", VIP, **more))] == [VIP, "192.0.2.1", "198.51.100.1"]
    assert [place[1] for place in places(service("a", VIP6, **more))] == [VIP6, "2001:db8::1", "2001:db8:1::1"]


def test_a_load_balancer_without_node_ports() -> None:
    """allocateLoadBalancerNodePorts false: the control plane assigns none. The other addresses are served."""
    one = service("web", VIP, load_balancer_ips=ips("203.0.113.1"), external_local=True, health_check_node_port=30100)
    assert places(one) == [("CLUSTER_IP", VIP, 80), ("LOAD_BALANCER", "203.0.113.1", 80)]


LB4, LB6 = "203.0.113.1", "2001:db8:2::1"
RANGES, NODE = FrontendFlag.SOURCE_RANGES, FrontendFlag.ALLOWS_NODE


def restricted(ranges: list[str] | None, here: Here = HERE) -> tuple[ServiceTables, Service]:
    one = service(
        "web",
        VIP,
        VIP6,
        ports=PORTS,
        load_balancer_ips=ips(LB4, LB6),
        external_ips=ips("198.51.100.1"),
        source_ranges=ranges and tuple(map(ip_network, ranges)),
    )
    return compiled(one, here=here), one


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (None, {LB4: (0, set()), LB6: (0, set())}),
        # A family without ranges has no restriction.
        (["10.0.0.0/8"], {LB4: (RANGES, {"10.0.0.0/8"}), LB6: (0, set())}),
        (["10.0.0.0/8", "fd00::/8"], {LB4: (RANGES, {"10.0.0.0/8"}), LB6: (RANGES, {"fd00::/8"})}),
        # The prefix 0 is no restriction.
        (["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"], {LB4: (0, set()), LB6: (RANGES, {"fd00::/8"})}),
        # An invalid range allows nothing (nodenet/decode).
        (["0.0.0.0/32", "::/128"], {LB4: (RANGES, set()), LB6: (RANGES, set())}),
        # The node's address is in a range: so the node may, and from the load balancer's address too.
        (["192.0.2.0/30"], {LB4: (RANGES | NODE, {"192.0.2.0/30", f"{LB4}/32"}), LB6: (0, set())}),
        (["2001:db8::/64"], {LB4: (0, set()), LB6: (RANGES | NODE, {"2001:db8::/64", f"{LB6}/128"})}),
    ],
)
def test_source_ranges_are_those_of_load_balancer_addresses(ranges: list[str] | None, expected: Any) -> None:
    """Node ports and external addresses have no ranges."""
    tables, _ = restricted(ranges, replace(HERE, addresses=(NODE4, NODE6)))
    found: dict[str, tuple[int, set[str]]] = {}
    for number, address in tables.revnat.items():
        master = tables.frontends[FrontendKey(*address, 0)]
        mine = [key for key in tables.source_ranges if key.service_id == number.value]
        networks = {f"{key.addr}/{key.prefixlen - (128 if key.addr.version == 4 else 32)}" for key in mine}
        if master.flags or networks or str(address.addr) in expected:
            found[str(address.addr)] = (master.flags, networks)
    assert found == expected
    assert not tables.warnings


def test_one_service_fills_no_more_than_its_share_of_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest are used: what is left out refuses its sources."""
    monkeypatch.setattr(rules, "MAX_SOURCE_RANGES", 2 * len(PORTS) * 2 + 1)
    tables, one = restricted(["10.1.1.0/24", "10.2.0.0/16", "10.3.3.3/32", "192.168.0.0/16", "fd00::/8"])
    numbers = {number.value for number, address in tables.revnat.items() if str(address.addr) == LB4}
    assert len(numbers) == len(PORTS)
    for number in numbers:
        assert {str(k.addr) for k in tables.source_ranges if k.service_id == number} == {"10.2.0.0", "192.168.0.0"}
    assert [(warning.ref, warning.message) for warning in tables.warnings] == [
        (
            one.ref,
            f"spec.loadBalancerSourceRanges: 4 IPv4 ranges for each of {len(PORTS)} ports and 2 addresses, "
            f"expected at most {rules.MAX_SOURCE_RANGES} in all: the 2 widest are used, and sources in the others "
            "are refused",
        )
    ]


def test_ranges_that_change_replace_only_themselves() -> None:
    compiler, (first, one) = ServiceCompiler(Ids()), restricted(["10.0.0.0/8", "10.1.0.0/16"])
    slices = slice_("web", "10.0.0.1")
    first = compiler.compile({one.ref: one}, {slices.ref: slices}, HERE)
    _, two = restricted(["10.0.0.0/8", "10.2.0.0/16"])
    second = compiler.compile({one.ref: two}, {slices.ref: slices}, HERE)
    assert second.frontends is first.frontends
    lengths = [str(key.addr) for key in second.source_ranges.keys() ^ first.source_ranges.keys()]
    assert sorted(lengths) == ["10.1.0.0", "10.2.0.0"]
    _, three = restricted(None)
    third = compiler.compile({one.ref: three}, {slices.ref: slices}, HERE)
    assert not third.source_ranges
    assert not compiler.compile({}, {}, HERE).source_ranges


def test_the_nodes_own_address_is_its_first_of_each_family() -> None:
    """As kube-proxy's node address, whatever node_port_addresses says."""
    ranges = tuple(map(ip_network, ("192.0.2.1/32", "2001:db8::1/128")))
    one = service("web", VIP, VIP6, load_balancer_ips=ips(LB4, LB6), source_ranges=ranges)
    for addresses, allowed in ((("192.0.2.1", "192.0.2.2", "2001:db8::1"), NODE), (("192.0.2.2", "192.0.2.1"), 0)):
        for words in (["primary"], []):
            local = LocalNode("node1", frozenset(ips(*addresses)), node_ports=NodePorts.of(words))
            state, _ = compile_once(store_of(node("node1", *addresses), one).snapshot(), local)
            master = state.tables["nn_frontend"][FrontendKey(ip_address(LB4), 80, TCP, 0)]
            assert master.flags == RANGES | allowed


def test_a_port_that_is_not_served_is_said() -> None:
    ports = [("", TCP, 80), ("s", Protocol.SCTP, 132)]
    (warning,) = compiled(service("web", VIP, ports=ports)).warnings
    assert str(warning) == "Service default/web: spec.ports: port 132: SCTP is not served"
    assert not compiled(service("web", ports=ports)).warnings


def test_the_policy_for_inside_is_that_of_the_cluster_ip() -> None:
    """externalTrafficPolicy is about traffic from outside: from this node every backend is used."""
    far = SliceEndpoint(ips("10.0.0.1"), node_name="node2")
    tables = compiled(
        service("web", VIP, ports=PORTS, internal_local=True, external_local=True), backends=(far,), here=HERE
    )
    assert answers(tables) == []
    master = tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)]
    assert master.flags == FrontendFlag.ONLY_ELSEWHERE
    assert answers(tables, "192.0.2.1", 30080) == ["10.0.0.1:8080"]


def nodes_of(tables: ServiceTables, scope: FrontendScope, address: str = "192.0.2.1") -> tuple[list[str] | None, int]:
    """The backends and flags of a node port."""
    master = tables.frontends.get(FrontendKey(ip_address(address), 30080, TCP, 0, scope))
    return answers(tables, address, 30080, scope=scope), master.flags if master else 0


def test_traffic_from_outside_has_its_own_backends() -> None:
    """externalTrafficPolicy Local: the entry EXTERNAL has those of this node. A ClusterIP has no such entry."""
    near, far = (SliceEndpoint(ips(f"10.0.0.{n}"), node_name=f"node{n}") for n in (1, 2))
    one = service("web", VIP, ports=PORTS, external_local=True)
    keep, led = FrontendFlag.KEEP_SOURCE, FrontendFlag.KEEP_SOURCE | FrontendFlag.HAS_EXTERNAL
    both, here = ["10.0.0.1:8080", "10.0.0.2:8080"], ["10.0.0.1:8080"]
    tables = compiled(one, backends=(near, far))
    assert nodes_of(tables, FrontendScope.INTERNAL) == (both, led)
    assert nodes_of(tables, FrontendScope.EXTERNAL) == (here, keep)
    assert answers(tables, scope=FrontendScope.EXTERNAL) is None
    assert tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)].flags == 0
    # None here: it is dropped without an answer. None at all: it is refused, by one entry.
    tables = compiled(one, backends=(far,))
    assert nodes_of(tables, FrontendScope.EXTERNAL) == ([], keep | FrontendFlag.ONLY_ELSEWHERE)
    tables = compiled(one, backends=())
    assert nodes_of(tables, FrontendScope.INTERNAL) == ([], keep)
    assert nodes_of(tables, FrontendScope.EXTERNAL) == (None, 0)
    # The same for all traffic: one entry.
    tables = compiled(one, backends=(near,))
    assert nodes_of(tables, FrontendScope.INTERNAL) == (here, keep)
    assert nodes_of(tables, FrontendScope.EXTERNAL) == (None, 0)
    tables = compiled(replace(one, external_local=False), backends=(near, far))
    assert nodes_of(tables, FrontendScope.INTERNAL) == (both, 0)
    assert nodes_of(tables, FrontendScope.EXTERNAL) == (None, 0)


def test_backends_for_outside_may_be_no_backends_for_this_node() -> None:
    """A terminating endpoint of this node serves outside traffic while the only ready one is on another node. UDP flows
    keep it, and clients with affinity too, but only if they come from outside."""
    near = SliceEndpoint(ips("10.0.0.1"), False, True, True, "node1")
    far = SliceEndpoint(ips("10.0.0.2"), node_name="node2")
    ports = [("", UDP, 53, 30053)]
    one = service("dns", VIP, ports=ports, external_local=True, affinity_seconds=60)
    tables = ServiceCompiler(Ids()).compile(
        {one.ref: one}, {(s := slice_("dns", near, far, ports=[("", UDP, 53)])).ref: s}, HERE
    )
    address = "192.0.2.1"
    assert answers(tables, address, 30053, UDP) == ["10.0.0.2:53"]
    assert answers(tables, address, 30053, UDP, FrontendScope.EXTERNAL) == ["10.0.0.1:53"]
    number = tables.frontends[FrontendKey(NODE4, 30053, UDP, 0)].service_id
    found: dict[tuple[bool, bool], set[str]] = {}
    for key, backend in tables.members.items():
        if key.service_id & ~MEMBER_AFFINITY == number:
            kind = bool(key.service_id & MEMBER_AFFINITY), bool(key.backend_id & MEMBER_EXTERNAL)
            found.setdefault(kind, set()).add(str(backend.addr))
            assert tables.backends[U32(key.backend_id & ~MEMBER_EXTERNAL)] == backend
    assert found == {(False, False): {"10.0.0.1", "10.0.0.2"}, (True, False): {"10.0.0.2"}, (True, True): {"10.0.0.1"}}


def test_a_restart_keeps_the_slots_of_both_scopes_apart() -> None:
    ends = [SliceEndpoint(ips(f"10.0.0.{n}"), node_name=f"node{1 + n % 2}") for n in range(1, 9)]
    one = service("web", VIP, ports=PORTS, external_local=True)
    compiler = ServiceCompiler(Ids())
    for step in (ends, ends[2:], [ends[0], *ends[2:]]):
        slices = slice_("web", *step)
        before = compiler.compile({one.ref: one}, {slices.ref: slices}, HERE)
    tables = {"nn_frontend": before.frontends, "nn_backend": before.backends, "nn_revnat": before.revnat}
    for order in (dict, lambda table: dict(reversed([*table.items()]))):
        ids = Ids()
        slots = restore(ids, {name: order(table) for name, table in tables.items()})
        assert slots == before.slots
        assert {address.port: len(found) for address, found in slots.external.items()} == {30080: 3}
        after = ServiceCompiler(ids, slots).compile({one.ref: one}, {slices.ref: slices}, HERE)
        assert after.frontends == before.frontends


def test_without_any_endpoint_it_is_refused_not_dropped() -> None:
    tables = compiled(service("web", VIP, internal_local=True), backends=())
    assert tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)].flags == 0


def test_the_last_endpoint_goes_elsewhere_and_comes_back() -> None:
    """The master entry changes with its flags, though the number of backends stays 0."""
    one = service("web", VIP, internal_local=True)
    compiler = ServiceCompiler(Ids())
    flags = []
    for backends in ((), (SliceEndpoint(ips("10.0.0.1"), node_name="node2"),), ()):
        slices = slice_("web", *backends)
        tables = compiler.compile({one.ref: one}, {slices.ref: slices}, HERE)
        flags.append(tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)].flags)
    assert flags == [0, FrontendFlag.ONLY_ELSEWHERE, 0]


def test_an_external_address_takes_no_other_services_address() -> None:
    """spec.externalIPs is free text: a Service of another namespace, first by name, may name any address."""
    thief = service("a", "10.96.0.66", ports=[("", TCP, 80), ("n", TCP, 30080)], external_ips=(*ips(VIP), NODE4))
    owner = service("z", VIP, ports=PORTS)
    for services in ((thief, owner), (owner, thief)):
        tables = compiled(*services)
        for address, port in ((VIP, 80), ("192.0.2.1", 30080)):
            master = tables.frontends[FrontendKey(ip_address(address), port, TCP, 0)]
            assert tables.names[master.service_id].ref.name == "z"
        assert tables.addresses[AddressKey(ip_address(VIP))] == U32(AddressFlag.REFUSE_UNSERVED)
        assert [str(warning) for warning in tables.warnings] == [
            f"Service default/a: spec.externalIPs: {VIP} port 80 is already served for Service default/z",
            "Service default/a: spec.externalIPs: 192.0.2.1 port 30080 is already served for Service default/z",
        ]


def test_an_owner_that_comes_later_gets_its_address_and_its_flag() -> None:
    thief, owner = service("a", "10.96.0.66", external_ips=ips(VIP)), service("z", VIP)
    compiler = ServiceCompiler(Ids())
    steps = [(thief,), (thief, owner), (thief,), ()]
    found = []
    for step in steps:
        tables = compiler.compile({one.ref: one for one in step}, {}, HERE)
        master = tables.frontends.get(FrontendKey(ip_address(VIP), 80, TCP, 0))
        name = tables.names[master.service_id].ref.name if master else ""
        flags = tables.addresses.get(AddressKey(ip_address(VIP)))
        found.append((name, flags.value if flags else None))
    assert found == [("a", 0), ("z", AddressFlag.REFUSE_UNSERVED), ("a", 0), ("", None)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["primary"], ["192.0.2.1", "2001:db8::1"]),
        (["192.0.2.0/24"], ["192.0.2.1", "192.0.2.2"]),
        (["primary", "10.0.0.0/8"], ["10.1.0.1", "192.0.2.1", "2001:db8::1"]),
        (["all"], ["10.1.0.1", "192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        ([], []),
    ],
)
def test_node_port_addresses(words: list[str], expected: list[str]) -> None:
    own = frozenset(ips("192.0.2.1", "192.0.2.2", "10.1.0.1", "127.0.0.1", "::1", "fe80::1", "2001:db8::1"))
    local = LocalNode("node1", own, node_ports=NodePorts.of(words))
    this = node("node1", "192.0.2.1", "192.0.2.2", "2001:db8::1")
    ports = [("", TCP, 80, 30080), ("u", UDP, 53, 30053)]
    objects = [this, node("node2", "192.0.2.7"), service("web", VIP, VIP6, ports=ports)]
    state, _ = compile_once(store_of(*objects).snapshot(), local)
    keys = [key for key in state.tables["nn_frontend"] if key.slot == 0]
    assert sorted(str(key.addr) for key in keys if key.port == 30080) == expected
    assert sorted(str(key.addr) for key in keys if key.port == 30053) == expected


def test_the_order_of_kinds_is_the_order_of_ownership() -> None:
    assert sorted(FrontendKind) == [
        FrontendKind.CLUSTER_IP,
        FrontendKind.NODE_PORT,
        FrontendKind.LOAD_BALANCER,
        FrontendKind.HOST_PORT,
        FrontendKind.EXTERNAL_IP,
    ]
