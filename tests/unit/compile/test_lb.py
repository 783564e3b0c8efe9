"""Frontends, backends and slots: kube-proxy's rules, and few writes."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.abi import U32, AddressFlag, AddressKey, AddressPort, FrontendKey
from nodenet.compile.ids import Ids
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.compile.slots import NO_SLOTS, arrange, restore
from nodenet.model import EndpointSlice, Service
from tests.unit.compile.build import TCP, UDP, compile_services, service, slice_, target

VIP, VIP6 = "10.96.0.10", "fd00:96::10"


def compiled(*objects: Service | EndpointSlice, ids: Ids | None = None, previous: Any = None) -> ServiceTables:
    services = {o.ref: o for o in objects if isinstance(o, Service)}
    slices = {o.ref: o for o in objects if isinstance(o, EndpointSlice)}
    return compile_services(services, slices, ids or Ids(), previous or NO_SLOTS)


def answers(
    tables: ServiceTables, vip: str = VIP, port: int = 80, protocol: int = TCP, scope: int = 0
) -> list[str] | None:
    """What the datapath can choose for an address; None: no entry."""
    key = FrontendKey(ip_address(vip), port, protocol, 0, scope)
    master = tables.frontends.get(key)
    if master is None:
        return None
    found = []
    for slot in range(1, master.backends + 1):
        entry = tables.frontends[key._replace(slot=slot)]
        assert entry.service_id == master.service_id
        backend = tables.backends[U32(entry.backend_id)]
        found.append(f"{backend.addr}:{backend.port}")
    return sorted(found)


def test_a_service_with_two_backends() -> None:
    tables = compiled(service("web", VIP), slice_("web", "10.0.0.1", "10.0.0.2"))
    assert answers(tables) == ["10.0.0.1:8080", "10.0.0.2:8080"]
    assert len(tables.frontends) == 3
    assert tables.addresses == {AddressKey(ip_address(VIP)): U32(AddressFlag.REFUSE_UNSERVED)}
    ((number, address),) = tables.revnat.items()
    assert address == AddressPort(ip_address(VIP), 80, TCP)
    assert tables.names[number.value].ref.name == "web"


def test_without_backends_it_is_refused() -> None:
    assert answers(compiled(service("web", VIP))) == []


def test_dual_stack_uses_each_family_for_itself() -> None:
    tables = compiled(
        service("web", VIP, VIP6), slice_("web", "10.0.0.1"), slice_("web", "fd00::1", "fd00::2", name="web-6")
    )
    assert answers(tables) == ["10.0.0.1:8080"]
    assert answers(tables, VIP6) == ["fd00::1:8080", "fd00::2:8080"]


def test_slices_are_merged_and_doubles_are_one() -> None:
    tables = compiled(service("web", VIP), slice_("web", "10.0.0.1"), slice_("web", "10.0.0.1", "10.0.0.2", name="b"))
    assert answers(tables) == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_ports_join_by_name_and_protocol_and_slices_may_differ_in_number() -> None:
    ports = (("http", TCP, 80), ("dns", TCP, 53), ("dns-udp", UDP, 53))
    tables = compiled(
        service("web", VIP, ports=ports),
        slice_("web", "10.0.0.1", ports=[("http", TCP, 8080), ("dns-udp", UDP, 5353)]),
        slice_("web", "10.0.0.2", name="b", ports=[("http", TCP, 9090), ("dns", UDP, 5353)]),
    )
    assert answers(tables) == ["10.0.0.1:8080", "10.0.0.2:9090"]
    assert answers(tables, port=53, protocol=UDP) == ["10.0.0.1:5353"]
    assert answers(tables, port=53, protocol=TCP) == []


@pytest.mark.parametrize(
    ("endpoints", "publish", "expected"),
    [
        ([target("10.0.0.1"), target("10.0.0.2", ready=False)], False, ["10.0.0.1"]),
        ([target("10.0.0.1", ready=False)], False, []),
        ([target("10.0.0.1", ready=False)], True, ["10.0.0.1"]),
        # Serving and terminating: only while none is ready.
        ([target("10.0.0.1", False, True, True), target("10.0.0.2", False, False, True)], False, ["10.0.0.1"]),
        ([target("10.0.0.1", False, True, True), target("10.0.0.2")], False, ["10.0.0.2"]),
        # Not ready, serving, and not terminating is no state to send traffic to.
        ([target("10.0.0.1", False, True, False)], False, []),
        # An address reused while its last owner terminates: the living one counts.
        ([target("10.0.0.1", False, False, True), target("10.0.0.1")], False, ["10.0.0.1"]),
    ],
)
def test_conditions(endpoints: Any, publish: bool, expected: list[str]) -> None:
    tables = compiled(service("web", VIP, publish_not_ready_addresses=publish), slice_("web", *endpoints))
    assert answers(tables) == [f"{ip}:8080" for ip in expected]


def test_terminating_ones_are_judged_per_port_and_family() -> None:
    tables = compiled(
        service("web", VIP, VIP6),
        slice_("web", target("10.0.0.1", False, True, True)),
        slice_("web", "fd00::1", name="b"),
    )
    assert answers(tables) == ["10.0.0.1:8080"]
    assert answers(tables, VIP6) == ["fd00::1:8080"]


def test_headless_and_foreign_services_have_no_frontend() -> None:
    foreign = [
        service(name, VIP, labels={f"service.kubernetes.io/{label}": value}, external_ips=(ip_address("192.0.2.1"),))
        for name, label, value in (("b", "service-proxy-name", "other"), ("c", "headless", ""))
    ]
    tables = compiled(service("a"), *foreign, *(slice_(name, "10.0.0.1") for name in "abc"))
    assert not tables.warnings
    assert not tables.frontends
    assert not tables.backends
    assert not tables.revnat


def test_two_services_share_a_backend_and_it_goes_with_the_last() -> None:
    one, two = service("one", VIP), service("two", "10.96.0.11")
    both = compiled(one, two, slice_("one", "10.0.0.1"), slice_("two", "10.0.0.1"))
    assert len(both.backends) == 1
    assert len(compiled(one, two, slice_("one", "10.0.0.1")).backends) == 1
    assert not compiled(one, two).backends


def members(tables: ServiceTables, vip: str, port: int = 53) -> set[str]:
    """The addresses that are members of the UDP Service at this address."""
    (number,) = (k.value for k, v in tables.revnat.items() if v == AddressPort(ip_address(vip), port, UDP))
    return {str(backend.addr) for key, backend in tables.members.items() if key.service_id == number}


DNS = (("dns", UDP, 53),)


def test_members_are_kept_for_each_udp_service_by_itself() -> None:
    ports = (*DNS, ("dns-tcp", TCP, 53))
    one, two = service("one", VIP, ports=ports), service("two", "10.96.0.11", ports=ports)
    slices = slice_("one", "10.0.0.1", "10.0.0.2", ports=ports), slice_("two", "10.0.0.1", ports=ports)
    tables = compiled(one, two, *slices)
    assert (members(tables, VIP), members(tables, "10.96.0.11")) == ({"10.0.0.1", "10.0.0.2"}, {"10.0.0.1"})
    assert {backend.protocol for backend in tables.members.values()} == {UDP}
    for key, backend in tables.members.items():
        assert tables.backends[U32(key.backend_id)] == backend
    gone = compiled(one, two, slice_("one", "10.0.0.2", ports=ports), slices[1])
    assert (members(gone, VIP), members(gone, "10.96.0.11")) == ({"10.0.0.2"}, {"10.0.0.1"})


def test_an_endpoint_that_finishes_its_work_keeps_its_flows_and_gets_no_new_ones() -> None:
    web = service("web", VIP, ports=DNS)
    serving, ended = target("10.0.0.1", False, True, True), target("10.0.0.3", False, False, True)
    unready = target("10.0.0.4", ready=False)
    tables = compiled(web, slice_("web", serving, "10.0.0.2", ended, unready, ports=DNS))
    assert answers(tables, port=53, protocol=UDP) == ["10.0.0.2:53"]
    assert members(tables, VIP) == {"10.0.0.1", "10.0.0.2"}


def test_an_address_that_changes_hands_has_the_members_of_its_new_service() -> None:
    compiler = ServiceCompiler(Ids())
    a, b = service("a", VIP, ports=DNS), service("b", VIP, ports=DNS)
    slices = {s.ref: s for s in (slice_("a", "10.0.0.1", ports=DNS), slice_("b", "10.0.0.2", ports=DNS))}
    assert members(compiler.compile({a.ref: a, b.ref: b}, slices), VIP) == {"10.0.0.1"}
    assert members(compiler.compile({b.ref: b}, slices), VIP) == {"10.0.0.2"}
    assert not compiler.compile({}, slices).members


def test_an_address_claimed_twice_goes_to_the_first_by_name_and_is_told() -> None:
    tables = compiled(service("b", VIP), service("a", VIP), slice_("a", "10.0.0.1"), slice_("b", "10.0.0.2"))
    assert answers(tables) == ["10.0.0.1:8080"]
    (warning,) = tables.warnings
    assert str(warning).startswith("Service default/b: spec.clusterIPs: 10.96.0.10 port 80")


def test_too_many_backends_are_cut_and_told() -> None:
    ips = [str(ip_address(0x0A000000 + n)) for n in range(1, 65538)]
    tables = compiled(service("web", VIP), slice_("web", *ips))
    assert tables.frontends[FrontendKey(ip_address(VIP), 80, TCP, 0)].backends == 65535
    assert "65537 backends" in str(tables.warnings[0])


def test_one_backend_less_moves_one_slot() -> None:
    ids = Ids()
    ips = [f"10.0.0.{n}" for n in range(1, 101)]
    web = service("web", VIP)
    before = compiled(web, slice_("web", *ips), ids=ids)
    after = compiled(web, slice_("web", *(ip for ip in ips if ip != "10.0.0.40")), ids=ids, previous=before.slots)
    changed = {key for key, value in after.frontends.items() if before.frontends.get(key) != value}
    gone = before.frontends.keys() - after.frontends.keys()
    assert {key.slot for key in changed} - {0} == {40}
    assert {key.slot for key in gone} == {100}


def test_a_restart_keeps_numbers_and_slots() -> None:
    ids = Ids()
    web = service("web", VIP, VIP6)
    first = compiled(
        web, slice_("web", "10.0.0.1", "10.0.0.2", "10.0.0.3"), slice_("web", "fd00::1", name="b"), ids=ids
    )
    less = (web, slice_("web", "10.0.0.2", "10.0.0.3"), slice_("web", "fd00::1", name="b"))
    second = compiled(*less, ids=ids, previous=first.slots)
    held = {"nn_frontend": second.frontends, "nn_backend": second.backends, "nn_revnat": second.revnat}
    fresh = Ids()
    slots = restore(fresh, held)
    assert slots == second.slots
    again = compiled(*less, ids=fresh, previous=slots)
    assert (again.frontends, again.backends, again.revnat) == (second.frontends, second.backends, second.revnat)


def test_the_order_of_input_does_not_matter() -> None:
    objects = [service(f"s{n}", f"10.96.0.{n}") for n in range(1, 9)]
    slices = [slice_(f"s{n}", f"10.0.0.{n}", f"10.0.1.{n}") for n in range(1, 9)]
    one, two = compiled(*objects, *slices), compiled(*reversed(slices), *reversed(objects))
    assert list(one.frontends.items()) == list(two.frontends.items())
    assert list(one.backends.items()) == list(two.backends.items())


numbers = st.lists(st.integers(1, 12), unique=True, max_size=10)


@given(numbers, st.lists(st.integers(0, 12), max_size=10))
def test_arrange_holds_what_is_wanted_and_moves_little(wanted: list[int], previous: list[int]) -> None:
    slots = arrange(wanted, previous)
    assert sorted(slots) == sorted(wanted)
    kept = [b for b in dict.fromkeys(previous) if b in wanted]
    first = {b: previous.index(b) for b in kept}
    moved = [b for b in kept if slots.index(b) != first[b]]
    # Only what lies beyond the new end has to move.
    assert all(first[b] >= len(wanted) for b in moved)
