"""A change compiled on top of the last result gives what compiling from nothing gives, and touches nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.abi import AddressPort, FrontendKey
from nodenet.compile import lb
from nodenet.compile.backends import Here
from nodenet.compile.ids import Ids, Numbering, Space
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.compile.slots import NO_SLOTS, Slots, restore
from nodenet.evolved import Evolved
from nodenet.model import EndpointSlice, ObjectRef, Service, ServiceType
from nodenet.reconcile.plan import Write, plan_services
from tests.unit.compile.build import TCP, UDP, as_tables, compile_services, service, slice_, target

# Few of everything, so that claims clash, slices move and backends are shared.
NAMES = st.sampled_from("abc")
VIPS = st.lists(st.sampled_from(["10.96.0.1", "10.96.0.2", "fd00:96::1"]), unique=True, max_size=2)
SERVICE_PORTS = st.lists(
    st.sampled_from(
        [("x", TCP, 80), ("y", UDP, 80), ("z", TCP, 81), ("x2", TCP, 80), ("x", TCP, 80, 81), ("y", UDP, 80, 81)]
    ),
    unique=True,
    max_size=3,
)
# Kinds of addresses that clash with each other: an external address may be a ClusterIP or the node's own.
EXTERNAL = st.lists(st.sampled_from(["10.96.0.1", "10.96.0.9", "192.0.2.1"]), unique=True, max_size=2)
HERES = st.sampled_from([Here("node1"), Here("node1", "a", *[(ip_address("192.0.2.1"),)] * 2), Here("node2", "b")])
SLICE_PORTS = st.lists(st.sampled_from([("x", TCP, 8080), ("y", UDP, 53), ("z", TCP, 8080)]), unique=True, max_size=3)
TARGETS = st.lists(
    st.builds(
        target,
        st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]),
        st.booleans(),
        terminating=st.just(True),
    ).flatmap(
        lambda one: st.builds(
            lambda node, zones: replace(one, node_name=node, for_zones=zones),
            st.sampled_from(["node1", "node2"]),
            st.sampled_from([(), ("a",)]),
        )
    ),
    max_size=4,
)


def _service(
    name: str,
    vips: list[str],
    ports: list[Any],
    flags: tuple[bool, bool, bool, bool],
    external: tuple[list[str], list[str]],
) -> Service:
    publish, foreign, local, external_local = flags
    labels = {"service.kubernetes.io/service-proxy-name": "other"} if foreign else {}
    made = service(
        name,
        *vips,
        ports=ports,
        publish_not_ready_addresses=publish,
        labels=labels,
        internal_local=local,
        external_local=external_local,
        affinity_seconds=60 if publish and local else 0,
        external_ips=tuple(map(ip_address, external[0])),
        load_balancer_ips=tuple(map(ip_address, external[1])),
        source_ranges=(ip_network("192.0.2.0/24"), ip_network("10.0.0.0/8"))[: len(ports)] if publish else None,
    )
    return replace(made, type=ServiceType.LOAD_BALANCER, health_check_node_port=30000) if external[1] else made


def _slice(name: str, of: str, targets: list[Any], ports: list[Any]) -> EndpointSlice:
    return slice_(of, *targets, name=name, ports=ports)


FLAGS = st.tuples(st.booleans(), st.sampled_from([False, False, False, True]), st.booleans(), st.booleans())
SERVICES = st.builds(_service, NAMES, VIPS, SERVICE_PORTS, FLAGS, st.tuples(EXTERNAL, EXTERNAL))
SLICES = st.builds(_slice, st.sampled_from("pqrs"), NAMES, TARGETS, SLICE_PORTS)
GONE = st.tuples(st.sampled_from([Service, EndpointSlice]), st.sampled_from("abcpqrs"))
# One step is several changes at once, or none; then the maps may or may not be brought up to date (settle).
STEPS = st.lists(
    st.tuples(st.lists(SERVICES | SLICES | GONE | HERES, max_size=4), st.booleans()), min_size=1, max_size=8
)


class Cluster:
    """Mappings as the store gives them: new ones where something changed, the same objects in them where not."""

    def __init__(self) -> None:
        self.services: Mapping[ObjectRef, Service] = {}
        self.slices: Mapping[ObjectRef, EndpointSlice] = {}
        self.here = Here("node1")

    def change(self, changes: list[Any]) -> None:
        for change in changes:
            services, slices = dict(self.services), dict(self.slices)
            if isinstance(change, Service):
                services[change.ref] = change
            elif isinstance(change, EndpointSlice):
                slices[change.ref] = change
            elif isinstance(change, Here):
                self.here = change
            else:
                kind, name = change
                (services if kind is Service else slices).pop(ObjectRef("default", name), None)
            self.services = services if services != self.services else self.services
            self.slices = slices if slices != self.slices else self.slices


def meaning(compiled: ServiceTables) -> dict[str, Any]:
    """The result but for the order of slots, which tells of the past."""
    by_slot: dict[Any, Any] = {}
    for key, entry in compiled.frontends.items():
        if key.slot:
            by_slot.setdefault((key[:3], key.scope), {})[key.slot] = entry
    assert {key: tuple(entries[n].backend_id for n in sorted(entries)) for key, entries in by_slot.items()} == {
        (key, scope): slots for scope, table in enumerate(compiled.slots) for key, slots in table.items() if slots
    }
    return {
        "masters": {key: entry for key, entry in compiled.frontends.items() if not key.slot},
        "slots": [{key: sorted(slots) for key, slots in table.items()} for table in compiled.slots],
        "backends": compiled.backends,
        "members": compiled.members,
        "addresses": compiled.addresses,
        "revnat": compiled.revnat,
        "source_ranges": compiled.source_ranges,
        "names": compiled.names,
        "warnings": compiled.warnings,
        "health_checks": dict(compiled.health_checks),
    }


@pytest.mark.parametrize("most", [1, lb.MAX_BACKENDS])
def test_it_is_what_compiling_from_nothing_gives(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lb, "MAX_BACKENDS", most)
    _it_is_what_compiling_from_nothing_gives()


@settings(max_examples=200, deadline=None)
@given(STEPS)
def _it_is_what_compiling_from_nothing_gives(steps: list[tuple[list[Any], bool]]) -> None:
    ids, cluster = Ids(), Cluster()
    compiler = ServiceCompiler(ids)
    reference_ids = Ids()
    slots = NO_SLOTS
    for changes, settled in steps:
        cluster.change(changes)
        result = compiler.compile(cluster.services, cluster.slices, cluster.here)
        # With the same past: equal to the last slot. Without any: equal but for the order of slots.
        reference = compile_services(cluster.services, cluster.slices, reference_ids, slots, cluster.here)
        slots = Slots(*map(dict, reference.slots))
        assert as_tables(result) == as_tables(reference)
        assert result.slots == reference.slots
        assert meaning(result) == meaning(compile_services(cluster.services, cluster.slices, Ids(), here=cluster.here))
        assert meaning(result) == meaning(reference)
        if settled:
            ids.settle()
            reference_ids.settle()
        for numbering, other in ((ids.services, reference_ids.services), (ids.backends, reference_ids.backends)):
            assert numbering.__dict__ == other.__dict__
    assert compiler.compile(cluster.services, cluster.slices, cluster.here) is result


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_plan_reads_only_what_changed_and_is_the_same(steps: list[tuple[list[Any], bool]]) -> None:
    cluster, compiler = Cluster(), ServiceCompiler(Ids())
    held = as_tables(compiler.compile({}, {}))
    for changes, reached in steps:
        cluster.change(changes)
        wanted = as_tables(compiler.compile(cluster.services, cluster.slices, cluster.here))
        full = plan_services(wanted, {name: dict(table) for name, table in held.items()})
        quick = plan_services(wanted, held)
        assert sorted(map(_order, quick)) == sorted(map(_order, full))
        made = {name: dict(table) for name, table in held.items()}
        for write in quick:
            if write.is_delete:
                del made[write.table][write.key]
            else:
                made[write.table][write.key] = write.value
        assert made == wanted
        # Else the writes failed: the next plan is from a table that is not the one before.
        held = wanted if reached else held


def _order(write: Write) -> str:
    return repr(write)


@given(STEPS, STEPS)
def test_after_a_restart_numbers_and_slots_stay(before: list[tuple[list[Any], bool]], after: list[Any]) -> None:
    cluster, ids = Cluster(), Ids()
    compiler = ServiceCompiler(ids)
    for changes, _ in before:
        cluster.change(changes)
        result = compiler.compile(cluster.services, cluster.slices, cluster.here)
        ids.settle()
    fresh = Ids()
    again = ServiceCompiler(fresh, restore(fresh, as_tables(result)))
    for changes, _ in [([], True), *after]:
        cluster.change(changes)
        one, two = (each.compile(cluster.services, cluster.slices, cluster.here) for each in (compiler, again))
        assert as_tables(one) == as_tables(two)
        ids.settle()
        fresh.settle()


def test_one_change_touches_its_own_service_alone() -> None:
    services = {o.ref: o for o in (service(f"s{n}", f"10.96.0.{n}") for n in range(1, 101))}
    slices = {o.ref: o for o in (slice_(f"s{n}", f"10.0.0.{n}", f"10.0.1.{n}") for n in range(1, 101))}
    compiler = ServiceCompiler(Ids())
    first = compiler.compile(services, slices)
    moved = slice_("s7", "10.0.0.7", "10.0.2.7")
    second = compiler.compile(services, {**slices, moved.ref: moved})
    assert isinstance(second.frontends, Evolved)
    changes = second.frontends.changes_since(first.frontends)
    assert changes is not None
    assert set(changes) == {FrontendKey(ip_address("10.96.0.7"), 80, TCP, 2)}
    assert second.revnat is first.revnat
    assert second.names is first.names
    assert len(plan_services(as_tables(second), as_tables(first))) == 3


def test_objects_that_are_equal_but_not_the_same_change_nothing() -> None:
    compiler = ServiceCompiler(Ids())
    first = compiler.compile(*_one("10.0.0.1"))
    second = compiler.compile(*_one("10.0.0.1"))
    assert all(a is b for a, b in zip(as_tables(first).values(), as_tables(second).values(), strict=True))


def test_after_a_compilation_that_failed_the_next_is_right() -> None:
    ids = Ids(backends=Numbering(Space(1, 2)))
    compiler = ServiceCompiler(ids)
    first = compiler.compile(*_one("10.0.0.1", "10.0.0.2"))
    with pytest.raises(OverflowError):
        compiler.compile(*_one("10.0.0.1", "10.0.0.3", "10.0.0.4"))
    again = compiler.compile(*_one("10.0.0.1", "10.0.0.2"))
    assert again == first
    less = compiler.compile(*_one("10.0.0.2"))
    ids.settle()
    assert set(less.backends.values()) == {AddressPort(ip_address("10.0.0.2"), 8080, TCP)}
    assert len(ids.backends) == 1


def _one(*backends: str) -> tuple[dict[ObjectRef, Service], dict[ObjectRef, EndpointSlice]]:
    web, ends = service("web", "10.96.0.1"), slice_("web", *backends)
    return {web.ref: web}, {ends.ref: ends}
