"""After every single write of a plan the maps of Services are consistent, and the next start repairs a crash at any of
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodenet.abi import (
    MEMBER_AFFINITY,
    MEMBER_EXTERNAL,
    U32,
    AddressKey,
    AddressPort,
    FrontendEntry,
    FrontendFlag,
    FrontendKey,
    FrontendScope,
    MemberKey,
)
from nodenet.compile.backends import Here
from nodenet.compile.ids import Ids
from nodenet.compile.slots import restore
from nodenet.model import EndpointSlice, Service
from nodenet.reconcile.apply import ApplyError, apply, read
from nodenet.reconcile.plan import SERVICE_TABLES, Write, plan_services
from nodenet.testing import Crashed, FakeTable, Fault, FaultyTable
from tests.unit.compile.build import TCP, UDP, as_tables, compile_services, service, slice_, target

Tables = Mapping[str, Mapping[Any, Any]]
Cluster = tuple[list[Service], list[EndpointSlice]]

# Services of a small cluster: name -> (has it, its ports, its backends).
SERVICES = {"a": "10.96.0.1", "b": "10.96.0.2", "c": "fd00:96::3"}
EXTERNAL = {"a": "192.0.2.1", "b": "192.0.2.1", "c": "2001:db8::3"}
BALANCER = {"a": "203.0.113.1", "b": "203.0.113.2", "c": "2001:db8::4"}
SOURCE_RANGES = [
    tuple(map(ip_network, texts))
    for texts in (["10.1.0.0/16"], ["10.1.1.0/24", "fd01::/16"], ["10.2.0.0/16", "fd01:1::/32"], ["::/128"])
]
SOURCES = tuple(map(ip_address, ("10.1.0.1", "10.1.1.1", "10.2.0.1", "fd01::1", "fd01:1::1", "0.0.0.0")))
BACKENDS = {"a": "10.0.0.", "b": "10.0.0.", "c": "fd00::"}


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    services, slices = [], []
    for name in draw(st.lists(st.sampled_from(sorted(SERVICES)), unique=True)):
        ports = draw(st.lists(st.sampled_from([("x", TCP, 80), ("y", UDP, 80), ("z", TCP, 81)]), unique=True))
        more: dict[str, Any] = {"external_ips": (ip_address(EXTERNAL[name]),)} if draw(st.booleans()) else {}
        if draw(st.booleans()):
            more["load_balancer_ips"] = (ip_address(BALANCER[name]),)
            more["source_ranges"] = draw(st.sampled_from([None, *SOURCE_RANGES]))
        more |= {"external_local": draw(st.booleans()), "affinity_seconds": draw(st.sampled_from([0, 60]))}
        services.append(service(name, SERVICES[name], ports=ports, **more))
        ends = [
            replace(target(f"{BACKENDS[name]}{n}"), node_name=f"node{1 + n % 2}")
            for n in draw(st.lists(st.integers(1, 6), unique=True, max_size=6))
        ]
        slices.append(slice_(name, *ends, ports=[("x", TCP, 8080), ("y", UDP, 8080)]))
    return services, slices


class Node:
    """A node's Service maps, and the agent that fills them; the maps outlive the agent."""

    def __init__(self) -> None:
        self.tables = {name: FakeTable(name) for name in SERVICE_TABLES}
        self.start()

    def start(self) -> None:
        self.ids = Ids()
        self.slots = restore(self.ids, self.held())

    def held(self) -> dict[str, dict[Any, Any]]:
        return read(self.tables, SERVICE_TABLES)

    def desired(self, cluster: Cluster) -> Tables:
        services, slices = ({o.ref: o for o in objects} for objects in cluster)
        compiled = compile_services(services, slices, self.ids, self.slots, Here("node1"))  # type: ignore[arg-type]
        self.slots = compiled.slots
        return as_tables(compiled)

    def apply(self, cluster: Cluster, fault: Fault | None = None) -> list[Write]:
        desired = self.desired(cluster)
        writes = plan_services(desired, self.held())
        tables = {name: FaultyTable(table, fault) if fault else table for name, table in self.tables.items()}
        apply(writes, tables, self.held(), Counter())
        self.ids.settle()
        assert self.held() == desired
        return writes


def leads_to(tables: Tables) -> dict[tuple[Any, ...], set[AddressPort]]:
    """The backends to which the datapath sends for each frontend and scope. Every slot must have an existing
    backend."""
    found: dict[tuple[Any, ...], set[AddressPort]] = {}
    for key, internal in tables["nn_frontend"].items():
        if key.slot or key.scope:
            continue
        for scope in FrontendScope:
            master = key
            if scope is FrontendScope.EXTERNAL and internal.flags & FrontendFlag.HAS_EXTERNAL:
                master = key._replace(scope=1)
            found[*key[:3], scope] = set(ends_of(tables, master))
    return found


def ends_of(tables: Tables, master: FrontendKey) -> Iterator[AddressPort]:
    entry = tables["nn_frontend"][master]
    assert U32(entry.service_id) in tables["nn_revnat"]
    for slot in range(1, entry.backends + 1):
        number = tables["nn_frontend"][master._replace(slot=slot)].backend_id
        yield (backend := tables["nn_backend"][U32(number)])
        if master.protocol == UDP:
            assert tables["nn_member"][MemberKey(entry.service_id, number)] == backend


def allowed(tables: Tables) -> dict[tuple[Any, ...], bool]:
    """Whether a source may use a frontend, by frontend and source."""
    networks: dict[int, list[Any]] = {}
    for key in tables["nn_source_range"]:
        bits = key.prefixlen - (128 if key.addr.version == 4 else 32)
        networks.setdefault(key.service_id, []).append(ip_network((key.addr, bits)))
    return {
        (key[:3], source): not entry.flags & FrontendFlag.SOURCE_RANGES
        or any(source in network for network in networks.get(entry.service_id, []))
        for key, entry in tables["nn_frontend"].items()
        for source in SOURCES
        if not key.slot
    }


def keeps_affinity(tables: Tables) -> None:
    """Every backend that is chosen may be kept. While affinity is switched off, one that is not costs a choice."""
    for key, entry in tables["nn_frontend"].items():
        master = tables["nn_frontend"][key._replace(slot=0)]
        if key.slot and master.affinity_seconds:
            number = entry.backend_id | (MEMBER_EXTERNAL if key.scope else 0)
            member = tables["nn_member"][MemberKey(entry.service_id | MEMBER_AFFINITY, number)]
            assert member == tables["nn_backend"][U32(entry.backend_id)]


def _local(ports: list[tuple[str, int, int]], *ends: int, external: bool = True) -> Cluster:
    """Service `a` with externalTrafficPolicy Local. Endpoints with an odd number are on another node."""
    ips = (ip_address(EXTERNAL["a"]),) if external else ()
    found = service("a", SERVICES["a"], ports=ports, external_ips=ips, external_local=True)
    targets = [replace(target(f"{BACKENDS['a']}{n}"), node_name=f"node{1 + n % 2}") for n in ends]
    return [found], [slice_("a", *targets, ports=[("x", TCP, 8080), ("y", UDP, 8080)])]


_BOTH = [("x", TCP, 80), ("y", UDP, 80)]


# Entries for traffic from outside that go, come, or stay together with their frontends, one of them or all.
@example(_local(_BOTH, 1, 2), _local([], 1, 2, external=False))
@example(_local(_BOTH, 1, 2), _local(_BOTH[:1], 1, 2, external=False))
@example(_local(_BOTH, 1, 2), _local(_BOTH[1:], 2))
@example(_local(_BOTH, 1), _local([], external=False))
@example(_local([], 1, 2, external=False), _local(_BOTH, 1, 2))
@settings(max_examples=150, deadline=None)
@given(clusters(), clusters())
def test_every_frontend_leads_to_old_or_new_backends_at_every_write(old: Cluster, new: Cluster) -> None:
    node = Node()
    node.apply(old)
    held = node.held()
    kept = dict(held["nn_member"])
    before, might = leads_to(held), allowed(held)
    desired = node.desired(new)
    after, may = leads_to(desired), allowed(desired)
    for write in plan_services(desired, held):
        if write.is_delete:
            del held[write.table][write.key]
        else:
            held[write.table][write.key] = write.value
        for frontend, ends in leads_to(held).items():
            assert AddressKey(frontend[0]) in held["nn_service_addr"], "unserved ports are refused meanwhile"
            # When the policy changes together with the endpoints, one of them comes first: traffic from outside may
            # meet the INTERNAL entry with the policy before or after.
            keys = {frontend, (*frontend[:3], FrontendScope.INTERNAL)}
            assert ends <= set().union(*(table.get(key, set()) for table in (before, after) for key in keys))
            if before.get(frontend) and after.get(frontend):
                assert ends, "it had an answer before, and has one after"
        for who, is_allowed in allowed(held).items():
            assert is_allowed in {table[who] for table in (might, may) if who in table}
        stay = kept.items() & desired["nn_member"].items()
        assert stay <= held["nn_member"].items(), "a backend that stays is a member all the time"
        for addr, *_ in before.keys() & after.keys():
            assert AddressKey(addr) in held["nn_service_addr"], "unserved ports are refused all the time"
    assert held == desired
    keeps_affinity(held)


@settings(max_examples=150, deadline=None)
@given(clusters(), clusters(), clusters(), st.integers(0, 60), st.booleans())
def test_a_death_at_any_write_is_repaired(old: Cluster, new: Cluster, newer: Cluster, at: int, made: bool) -> None:
    node = Node()
    node.apply(old)
    try:
        node.apply(new, Fault(at, crash=True, made=made))
    except Crashed:
        leads_to(node.held())
    node.start()
    node.apply(newer)
    node.start()
    assert node.apply(newer) == []


@settings(max_examples=60, deadline=None)
@given(clusters(), clusters(), st.integers(0, 60))
def test_a_write_that_fails_is_repaired_without_a_restart(old: Cluster, new: Cluster, at: int) -> None:
    node = Node()
    node.apply(old)
    fault = Fault(at)
    writes = node.apply(old) or plan_services(node.desired(new), node.held())
    if at < len(writes):
        with pytest.raises(ApplyError, match=r"^nn_\w+: (set|delete) .*out of memory"):
            node.apply(new, fault)
    node.apply(new)
    assert plan_services(node.desired(new), node.held()) == []


def test_one_backend_that_goes_costs_few_writes_in_the_safe_order() -> None:
    node = Node()
    ips = [f"10.0.0.{n}" for n in range(1, 51)]
    web = service("a", "10.96.0.1")
    node.apply(([web], [slice_("a", *ips)]))
    writes = node.apply(([web], [slice_("a", *ips[:20], *ips[21:])]))
    assert [(w.table, w.is_delete, getattr(w.key, "slot", None)) for w in writes[:2]] == [
        ("nn_frontend", False, 0),
        ("nn_frontend", False, writes[1].key.slot),
    ]
    assert [(w.table, w.is_delete) for w in writes[2:]] == [("nn_frontend", True), ("nn_backend", True)]


def test_a_backend_number_of_another_meaning_is_closed_first() -> None:
    """As if another program had written the maps."""
    vip = ip_address("10.96.0.1")
    stranger, mine = AddressPort(ip_address("10.9.9.9"), 1, 6), AddressPort(ip_address("10.0.0.1"), 80, 6)
    master, slot = FrontendKey(vip, 80, 6, 0), FrontendKey(vip, 80, 6, 1)
    frontends = {master: FrontendEntry(0, 5, 1), slot: FrontendEntry(7, 5, 0)}
    revnat = {U32(5): AddressPort(vip, 80, 6)}
    held = {"nn_frontend": frontends, "nn_backend": {U32(7): stranger}, "nn_revnat": revnat}
    desired = {"nn_frontend": dict(frontends), "nn_backend": {U32(7): mine}, "nn_revnat": revnat}
    assert plan_services(desired, held) == [
        Write("nn_frontend", master, FrontendEntry(0, 5, 0)),
        Write("nn_backend", U32(7), mine),
        Write("nn_frontend", master, FrontendEntry(0, 5, 1)),
    ]


def test_equal_tables_need_nothing_and_missing_ones_are_empty() -> None:
    assert plan_services({}, {name: {} for name in SERVICE_TABLES}) == []
