"""A full map: what fits is written, a Service is new or old as a whole, and policy fails closed."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nodenet.abi import (
    POLICY_BITS_DIRECTION,
    U32,
    AddressKey,
    EndpointEntry,
    EndpointFlag,
    FrontendFlag,
    FrontendKey,
    LpmKey,
    PolicyKey,
    Rule,
    SourceRangeKey,
    State,
    always,
)
from nodenet.compile import Compiler, LocalNode
from nodenet.errors import TableFullError
from nodenet.model import Direction
from nodenet.reconcile.apply import ApplyError, FullError, apply
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.maps import Maps, Outcome
from nodenet.reconcile.plan import SERVICE_TABLES, Tables, plan_services
from nodenet.reconcile.switch import POLICY_TABLES, SWITCHED
from nodenet.testing import FakeTable, Fault, FaultyTable, in_force
from tests.unit.compile.build import UDP, service, slice_, store_of, target
from tests.unit.netpolicy.datapath import Datapath, Packet

NAMES = (*SERVICE_TABLES, *POLICY_TABLES)


class Kernel:
    """Maps with limits, brought to what is wanted as often as a test asks."""

    def __init__(self, tables: Tables, **limits: int) -> None:
        raw = {
            name: {key: always(value) for key, value in table.items()} if name in SWITCHED else table
            for name, table in tables.items()
        }
        self.tables = {n: FakeTable(n, raw.get(n), limits.get(n, 1 << 20)) for n in NAMES}
        if "nn_state" not in tables:
            self.tables["nn_state"].update(U32(0), State(0, 0))

    def held(self) -> dict[str, dict[Any, Any]]:
        return in_force(self.tables)

    def services(self, wanted: Tables) -> Counter[str]:
        done: Counter[str] = Counter()
        apply(plan_services(wanted, self.held()), self.tables, self.held(), done)
        return done

    def policy(self, wanted: Tables) -> Outcome:
        """Change policy, wait for the deletes, and return the outcome. Raises its error."""
        maps, outcome = Maps(self.tables, NoPrograms()), Outcome(0)
        maps.read(outcome)
        maps.write({**{name: {} for name in NAMES if name != "nn_state"}, **wanted}, outcome)
        if outcome.errors:
            raise outcome.errors[0]
        return outcome

    def dangling(self) -> list[FrontendKey]:
        """Slots in use without a backend, and master entries without a reverse entry."""
        held = self.held()
        found = []
        for key, entry in held["nn_frontend"].items():
            if key.slot or not key.port:
                continue
            slots = [held["nn_frontend"].get(key._replace(slot=slot)) for slot in range(1, entry.backends + 1)]
            if any(slot is None or U32(slot.backend_id) not in held["nn_backend"] for slot in slots):
                found.append(key)
            if U32(entry.service_id) not in held["nn_revnat"]:
                found.append(key)
        return found


def frontend(number: int, slot: int = 0, port: int = 80) -> FrontendKey:
    return FrontendKey(ip_address(f"10.96.0.{number}"), port, 6, slot)


def wanted_services(**ips: tuple[str, ...]) -> Tables:
    objects: list[Any] = []
    for name, backends in ips.items():
        objects += [service(name, f"10.96.0.{ord(name) - 96}"), slice_(name, *backends)]
    return Compiler().compile(store_of(*objects).snapshot(), LocalNode("node1"))[0].tables


def test_traffic_from_outside_is_served_while_its_own_entry_has_no_room() -> None:
    """The flag that leads to the EXTERNAL entry is only written after it."""
    one = service("a", "10.96.0.1", external_ips=(ip_address("192.0.2.1"),))
    ends = [replace(target(f"10.0.1.{n}"), node_name=f"node{n}") for n in (1, 2)]
    old, new = (
        Compiler().compile(store_of(obj, slice_("a", *ends)).snapshot(), LocalNode("node1"))[0].tables
        for obj in (one, replace(one, external_local=True))
    )
    assert len(new["nn_frontend"]) == len(old["nn_frontend"]) + 2
    for room in (0, 1):
        kernel = Kernel(old, nn_frontend=len(old["nn_frontend"]) + room)
        with pytest.raises(FullError):
            kernel.services(new)
        held = kernel.held()["nn_frontend"]
        masters = {key: entry for key, entry in held.items() if not key.slot and not key.scope}
        assert masters == {key: entry for key, entry in old["nn_frontend"].items() if not key.slot}
    kernel.tables["nn_frontend"].max_entries += 1
    kernel.services(new)
    assert kernel.held()["nn_frontend"] == new["nn_frontend"]


def restricted(*ranges: str, name: str = "a") -> list[Any]:
    address = ip_address(f"192.0.2.{ord(name)}")
    more: Any = {"load_balancer_ips": (address,), "source_ranges": tuple(map(ip_network, ranges))}
    return [service(name, f"10.96.0.{ord(name) - 96}", **more), slice_(name, "10.0.1.1")]


def tables_of(*objects: Any) -> Tables:
    return Compiler().compile(store_of(*objects).snapshot(), LocalNode("node1"))[0].tables


def test_source_ranges_without_room_allow_nothing_more() -> None:
    old = tables_of(*restricted("10.1.0.0/16", "10.2.0.0/16"))
    new = tables_of(*restricted("10.2.0.0/16", "10.3.0.0/16"), *restricted("10.4.0.0/16", name="b"))
    kernel = Kernel(old, nn_source_range=2)
    with pytest.raises(FullError, match="nn_source_range"):
        kernel.services(new)
    held = kernel.held()
    assert held["nn_source_range"].keys() <= old["nn_source_range"].keys() & new["nn_source_range"].keys()
    b = FrontendKey(ip_address("192.0.2.98"), 80, 6, 0)
    assert held["nn_frontend"][b].flags & FrontendFlag.SOURCE_RANGES, "its sources are refused"
    kernel.tables["nn_source_range"].max_entries = 3
    kernel.services(new)
    assert kernel.held()["nn_source_range"] == new["nn_source_range"]
    assert b in kernel.held()["nn_frontend"]


def admits(kernel: Kernel, source: str, name: str = "a") -> bool:
    """True if the load balancer's address of this Service admits a source, as nn_source_allowed decides."""
    held = kernel.held()
    entry = held["nn_frontend"][FrontendKey(ip_address(f"192.0.2.{ord(name)}"), 80, 6, 0)]
    host = ip_network(source)
    keys = (SourceRangeKey.of(entry.service_id, host.supernet(new_prefix=bits)) for bits in range(33))
    return not entry.flags & FrontendFlag.SOURCE_RANGES or any(key in held["nn_source_range"] for key in keys)


def test_a_service_that_gets_source_ranges_does_not_stay_open() -> None:
    """Other ranges fill the map."""
    others = tables_of(*restricted("10.4.0.0/16", "10.5.0.0/16", name="b"))
    old = tables_of(*restricted(), *restricted("10.4.0.0/16", "10.5.0.0/16", name="b"))
    new = tables_of(*restricted("10.1.0.0/16"), *restricted("10.4.0.0/16", "10.5.0.0/16", name="b"))
    kernel = Kernel(old, nn_source_range=len(others["nn_source_range"]))
    assert admits(kernel, "10.7.0.1")
    with pytest.raises(FullError, match="nn_source_range"):
        kernel.services(new)
    assert not admits(kernel, "10.7.0.1")
    assert not admits(kernel, "10.1.0.1"), "its range does not fit"
    kernel.tables["nn_source_range"].max_entries += 1
    kernel.services(new)
    assert (admits(kernel, "10.7.0.1"), admits(kernel, "10.1.0.1")) == (False, True)


@pytest.mark.parametrize("before", [(), ("10.1.0.0/16", "10.2.0.0/16")])
def test_source_ranges_count_for_a_service_whose_backends_do_not_fit(before: tuple[str, ...]) -> None:
    """It keeps its backends, but admits no source any more that its new ranges exclude."""

    def both(*ranges: str, backends: tuple[str, ...]) -> Tables:
        local, _ = restricted(*ranges)
        return tables_of(local, slice_("a", *backends))

    old = both(*before, backends=("10.0.1.1",))
    new = both("10.1.0.0/16", backends=("10.0.1.1", "10.0.1.2"))
    kernel = Kernel(old, nn_frontend=len(old["nn_frontend"]))
    assert admits(kernel, "10.2.0.1")
    with pytest.raises(FullError, match="nn_frontend"):
        kernel.services(new)
    assert (admits(kernel, "10.2.0.1"), admits(kernel, "10.1.0.1")) == (False, True)
    assert kernel.dangling() == []
    kernel.tables["nn_frontend"].max_entries = 1000
    kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}


def test_a_service_without_room_that_loses_its_ranges_keeps_them() -> None:
    old = tables_of(*restricted("10.1.0.0/16"))
    service_, _ = restricted()
    new = tables_of(service_, slice_("a", "10.0.1.1", "10.0.1.2"))
    kernel = Kernel(old, nn_frontend=len(old["nn_frontend"]))
    with pytest.raises(FullError):
        kernel.services(new)
    assert admits(kernel, "10.1.0.1"), "as before"


def test_members_of_a_service_without_room_stay() -> None:
    """Those of session affinity, of both scopes, and the terminating backend of a UDP Service."""
    ports = [("", UDP, 53)]
    local: Any = {"external_ips": (ip_address("192.0.2.1"),), "affinity_seconds": 60, "external_local": True}

    def wanted(*backends: Any) -> Tables:
        return tables_of(service("a", "10.96.0.1", ports=ports, **local), slice_("a", *backends, ports=ports))

    ending = replace(target("10.0.1.3"), ready=False, serving=True, terminating=True)
    here = replace(target("10.0.1.1"), node_name="node1")
    old = wanted(here, target("10.0.1.2"), ending)
    numbers = {(bool(key.service_id >> 31), bool(key.backend_id >> 31)) for key in old["nn_member"]}
    assert numbers == {(False, False), (True, False), (True, True)}
    new = wanted(replace(target("10.0.1.4"), node_name="node1"), *(target(f"10.0.1.{n}") for n in range(5, 9)))
    kernel = Kernel(old, nn_frontend=len(old["nn_frontend"]))
    with pytest.raises(FullError, match="nn_frontend"):
        kernel.services(new)
    masters = {key: entry for key, entry in kernel.held()["nn_frontend"].items() if not key.slot}
    assert masters == {key: entry for key, entry in old["nn_frontend"].items() if not key.slot}
    assert old["nn_member"].items() <= kernel.held()["nn_member"].items()
    # A full map of members takes nothing from the slots either.
    kernel = Kernel(old, nn_member=len(old["nn_member"]) + 1)
    with pytest.raises(FullError, match="nn_member"):
        kernel.services(new)
    gone = old["nn_member"].keys() - kernel.held()["nn_member"].keys()
    assert {old["nn_member"][key].addr for key in gone} <= {ip_address("10.0.1.3")}
    kernel.tables["nn_member"].max_entries = 1000
    kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}


def test_ranges_of_a_service_that_goes_make_room() -> None:
    old, new = tables_of(*restricted("10.1.0.0/16")), tables_of(*restricted("10.2.0.0/16", name="b"))
    kernel = Kernel(old, nn_source_range=1)
    kernel.services(new)
    assert kernel.held()["nn_source_range"] == new["nn_source_range"]


def test_a_service_without_room_holds_up_no_other_and_is_left_whole() -> None:
    old = wanted_services(a=("10.0.1.1",), b=("10.0.1.2",))
    kernel = Kernel(old)
    before = len(kernel.held()["nn_frontend"])
    # a grows beyond the map, b changes, c is new and has no room either.
    kernel.tables["nn_frontend"].max_entries = before + 1
    new = wanted_services(a=tuple(f"10.0.1.{n}" for n in range(11, 20)), b=("10.0.1.3",), c=("10.0.1.4",))
    with pytest.raises(FullError, match=r"nn_frontend: set FrontendKey.*writes left out: .*nn_frontend") as refused:
        kernel.services(new)
    assert refused.value.table == "nn_frontend"
    assert kernel.dangling() == []
    held = kernel.held()["nn_frontend"]
    b = frontend(2)
    assert held[b] == new["nn_frontend"][b]
    assert held[b._replace(slot=1)] == new["nn_frontend"][b._replace(slot=1)]
    assert held[frontend(1)] == old["nn_frontend"][frontend(1)]
    kernel.tables["nn_frontend"].max_entries = 1000
    kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}


@pytest.mark.parametrize("table", ["nn_backend", "nn_revnat"])
def test_frontends_wait_for_what_they_refer_to(table: str) -> None:
    old = wanted_services(a=("10.0.1.1",), b=("10.0.1.2",))
    kernel = Kernel(old)
    new = wanted_services(a=("10.0.1.7", "10.0.1.8"), c=("10.0.1.9",))
    kernel.tables[table].max_entries = len(new[table]) - 1
    with pytest.raises(FullError):
        kernel.services(new)
    assert kernel.dangling() == []
    # The deletion of b makes room, so the rest fits step by step.
    assert frontend(2) not in kernel.held()["nn_frontend"]
    kernel.tables[table].max_entries += 3
    kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}


def test_a_udp_frontend_waits_for_its_members() -> None:
    ports = [("", UDP, 53)]

    def wanted(*ips: str) -> Tables:
        objects = service("a", "10.96.0.1", ports=ports), slice_("a", *ips, ports=ports)
        return Compiler().compile(store_of(*objects).snapshot(), LocalNode("node1"))[0].tables

    old, new = wanted("10.0.1.1", "10.0.1.2"), wanted("10.0.1.2", "10.0.1.3", "10.0.1.4")
    kernel = Kernel(old)
    kernel.tables["nn_member"].max_entries = 3
    with pytest.raises(FullError, match="nn_member"):
        kernel.services(new)
    # The Service is as it was, and what its slots lead to is still a member.
    held = kernel.held()
    assert held["nn_frontend"] == old["nn_frontend"]
    assert old["nn_member"].items() <= held["nn_member"].items()
    assert kernel.dangling() == []
    kernel.tables["nn_member"].max_entries = 5
    kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}


RULE = Rule.allow(7)


def allow(subject: int, peer: int) -> PolicyKey:
    return PolicyKey(POLICY_BITS_DIRECTION, subject, peer, Direction.INGRESS, 0, 0)


def endpoint_entry(flags: int) -> EndpointEntry:
    return EndpointEntry(5, 300, 1, flags, "02:00:00:00:00:01")


def test_policy_without_room_isolates_all_the_same() -> None:
    address = AddressKey(ip_address("10.0.1.9"))
    other = LpmKey.host(ip_address("10.0.1.10"))
    kernel = Kernel(
        {"nn_endpoint": {address: endpoint_entry(0)}, "nn_policy": {allow(400, 1): RULE, allow(400, 2): RULE}},
        nn_policy=3,
    )
    wanted: Tables = {
        "nn_endpoint": {address: endpoint_entry(EndpointFlag.ISOLATED_INGRESS)},
        "nn_policy": {allow(300, peer): RULE for peer in range(1, 6)},
        "nn_ipcache": {other: U32(301)},
    }
    with pytest.raises(FullError, match="nn_policy: set PolicyKey") as refused:
        kernel.policy(wanted)
    assert [write.table for write in refused.value.left] == ["nn_policy"] * 4
    held = kernel.held()
    assert held["nn_endpoint"] == wanted["nn_endpoint"]
    assert held["nn_ipcache"] == wanted["nn_ipcache"]
    assert held["nn_state"][U32(0)] == State(1, 1)
    # Nothing is allowed that is not wanted, and the room of what went is used by the next try.
    assert held["nn_policy"].keys() < wanted["nn_policy"].keys()
    with pytest.raises(FullError):
        kernel.policy(wanted)
    assert len(kernel.held()["nn_policy"]) == 3


WIDE, EXCEPTED = LpmKey.of(ip_network("10.0.0.0/8")), LpmKey.of(ip_network("10.1.0.0/16"))


def region_answers(kernel: Kernel) -> tuple[bool, bool]:
    """Whether a pod that may call that region reaches 10.1.2.3 (the exception) and 10.2.3.4."""
    datapath = Datapath(generation=kernel.held()["nn_state"][U32(0)].generation)
    for name in SWITCHED:
        for key, value in kernel.tables[name].items():
            datapath.update(name, key, value)
    pod = ip_address("10.0.1.9")
    ends = (ip_address("10.1.2.3"), ip_address("10.2.3.4"))
    first, second = (datapath.allows(Direction.EGRESS, Packet(pod, end, "TCP", 80)) for end in ends)
    return first, second


@pytest.mark.parametrize("old_kernel", [False, True])
@pytest.mark.parametrize("limit", [2, 3])
def test_a_region_that_does_not_fit_opens_nothing(limit: int, old_kernel: bool) -> None:
    """Today all of 10.0.0.0/8 is region 7001, which the pod may call. It shall get a hole, region 7003: then the
    rest is region 7002, because a number stands for one set of addresses."""
    address = AddressKey(ip_address("10.0.1.9"))
    others = {LpmKey.of(ip_network("192.0.2.0/24")): U32(9)}

    def to(region: int) -> PolicyKey:
        return PolicyKey(POLICY_BITS_DIRECTION, 300, region, Direction.EGRESS, 0, 0)

    endpoints = {address: endpoint_entry(EndpointFlag.ISOLATED_EGRESS)}
    old: Tables = {"nn_endpoint": endpoints, "nn_cidr": {WIDE: U32(7001), **others}, "nn_policy": {to(7001): RULE}}
    new: Tables = {
        "nn_endpoint": endpoints,
        "nn_cidr": {WIDE: U32(7002), EXCEPTED: U32(7003), LpmKey.of(ip_network("10.1.1.0/24")): U32(7004), **others},
        "nn_policy": {to(7002): RULE, to(7004): RULE},
    }
    kernel = Kernel(old)
    kind = OldTrie if old_kernel else FakeTable
    kernel.tables["nn_cidr"] = kind("nn_cidr", dict(kernel.tables["nn_cidr"].items()))
    kernel.tables["nn_cidr"].max_entries = limit
    assert region_answers(kernel) == (True, True)
    with pytest.raises(FullError, match="nn_cidr") as refused:
        kernel.policy(new)
    assert region_answers(kernel) == (False, False), "closed: no rule is for today's region"
    assert {write.key for write in refused.value.left} == new["nn_cidr"].keys() - others.keys()
    assert kernel.held()["nn_cidr"] == old["nn_cidr"]
    assert kernel.held()["nn_policy"] == new["nn_policy"], "everything else is in force"
    kernel.tables["nn_cidr"].max_entries = 9
    kernel.policy(new)
    assert region_answers(kernel) == (False, True)


def test_a_deny_without_room_stops_the_change() -> None:
    address = AddressKey(ip_address("10.0.1.9"))
    old: Tables = {"nn_endpoint": {address: endpoint_entry(0)}, "nn_policy": {allow(300, 1): RULE}}
    kernel = Kernel(old, nn_policy=1)
    new: Tables = {**old, "nn_policy": {allow(300, 1): RULE, allow(300, 2): Rule.deny(8)}, "nn_ipcache": {}}
    with pytest.raises(ApplyError, match=r"no room; nothing of the change is in force") as refused:
        kernel.policy({**new, "nn_endpoint": {address: endpoint_entry(EndpointFlag.TIERED_INGRESS)}})
    assert not isinstance(refused.value, FullError)
    assert {name: kernel.held()[name] for name in old} == old


def test_another_failure_still_ends_the_run_there() -> None:
    wanted = wanted_services(a=("10.0.1.1",))
    tables = {name: FaultyTable(FakeTable(name), Fault(0)) for name in SERVICE_TABLES}
    with pytest.raises(ApplyError) as refused:
        apply(plan_services(wanted, {}), tables, {name: {} for name in SERVICE_TABLES}, Counter())
    assert not isinstance(refused.value, FullError)


def test_the_kernels_maps_say_full_as_their_own_kind() -> None:
    class Full(FakeTable):
        def update(self, key: Any, value: Any) -> None:
            raise TableFullError("map nn_cidr is full")

    wanted: Tables = {"nn_cidr": {LpmKey.of(ip_network("10.0.0.0/8")): U32(70001)}}
    kernel = Kernel({})
    kernel.tables["nn_cidr"] = Full("nn_cidr")
    with pytest.raises(FullError, match="map nn_cidr is full"):
        kernel.policy(wanted)
    assert kernel.held()["nn_state"][U32(0)] == State(0, 0), "nothing was written, so nothing is switched"


class OldTrie(FakeTable):
    """An LPM map of a kernel before 6.13: when it is full it refuses to replace a value too."""

    def update(self, key: Any, value: Any) -> None:
        if len(list(self.items())) >= self.max_entries:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().update(key, value)


def test_an_address_in_a_full_map_does_not_keep_its_old_identity() -> None:
    moved, stays = LpmKey.host(ip_address("10.0.1.9")), LpmKey.host(ip_address("10.0.1.10"))
    kernel = Kernel({})
    kernel.tables["nn_ipcache"] = OldTrie("nn_ipcache", {moved: always(U32(300)), stays: always(U32(301))}, 3)
    kernel.tables["nn_ipcache"].max_entries = 2
    wanted: Tables = {"nn_ipcache": {moved: U32(302), stays: U32(301)}}
    kernel.policy(wanted)
    assert kernel.held()["nn_ipcache"] == wanted["nn_ipcache"]


def test_entries_that_go_from_a_full_trie_leave_the_kernel() -> None:
    addresses = [LpmKey.host(ip_address(f"10.0.1.{n}")) for n in range(1, 9)]
    kernel = Kernel({})
    kernel.tables["nn_ipcache"] = OldTrie("nn_ipcache", {key: always(U32(300)) for key in addresses}, 8)
    kernel.policy({"nn_ipcache": {}})
    assert not list(kernel.tables["nn_ipcache"].items())
    kernel.policy({"nn_ipcache": {addresses[0]: U32(301)}})
    assert kernel.held()["nn_ipcache"] == {addresses[0]: U32(301)}


def test_an_allow_that_goes_from_a_full_trie_does_not_stay_in_force() -> None:
    """Seven allows of a port go while an allow of the protocol covers them, and then that one goes."""
    wide = PolicyKey(72, 300, 400, Direction.INGRESS, 6, 0)
    ports = [wide._replace(prefixlen=88, port=port) for port in range(1, 8)]
    kernel = Kernel({})
    kernel.tables["nn_policy"] = OldTrie("nn_policy", {key: always(RULE) for key in (wide, *ports)}, 8)
    kernel.policy({"nn_policy": {wide: RULE}})
    assert [key for key, _ in kernel.tables["nn_policy"].items()] == [wide]
    kernel.policy({"nn_policy": {}})
    assert not list(kernel.tables["nn_policy"].items())


@pytest.mark.parametrize("table", ["nn_ipcache", "nn_cidr"])
def test_an_address_without_room_stops_the_change_if_an_endpoint_has_denies(table: str) -> None:
    """Without an entry the address passes a deny of its identity, and an allow for every peer lets it in."""
    here = AddressKey(ip_address("10.0.1.9"))
    gone, comes = LpmKey.host(ip_address("10.0.2.1")), LpmKey.host(ip_address("10.0.2.2"))
    for before, after in ((0, EndpointFlag.TIERED_INGRESS), (EndpointFlag.TIERED_EGRESS, 0)):
        old: Tables = {"nn_endpoint": {here: endpoint_entry(before)}, table: {gone: U32(300)}}
        kernel = Kernel(old, **{table: 1})
        # What goes from nn_ipcache makes room; a region that goes does not, before the switch.
        left = {gone: U32(300)} if table == "nn_ipcache" else {}
        with pytest.raises(ApplyError, match=r"no room; nothing of the change is in force") as refused:
            kernel.policy({"nn_endpoint": {here: endpoint_entry(after)}, table: {comes: U32(300), **left}})
        assert not isinstance(refused.value, FullError)
        assert {name: kernel.held()[name] for name in old} == old


def test_an_address_that_goes_makes_room_if_an_endpoint_has_denies() -> None:
    """It counts as the world after the change anyway. One that a prefix covers then does not go before it."""
    here = AddressKey(ip_address("10.0.1.9"))
    gone, comes = LpmKey.host(ip_address("10.0.2.1")), LpmKey.host(ip_address("10.0.3.2"))
    endpoints = {here: endpoint_entry(EndpointFlag.TIERED_INGRESS)}
    old: Tables = {"nn_endpoint": endpoints, "nn_ipcache": {gone: U32(300)}}
    kernel = Kernel(old, nn_ipcache=1)
    kernel.policy({"nn_endpoint": endpoints, "nn_ipcache": {comes: U32(301)}})
    assert kernel.held()["nn_ipcache"] == {comes: U32(301)}
    cover = LpmKey.of(ip_network("10.0.2.0/24"))
    kernel = Kernel(old, nn_ipcache=1)
    with pytest.raises(ApplyError, match=r"no room; nothing of the change is in force"):
        kernel.policy({"nn_endpoint": endpoints, "nn_ipcache": {cover: U32(3)}})
    assert kernel.held()["nn_ipcache"] == {gone: U32(300)}


def test_an_address_is_not_deleted_early_if_an_endpoint_has_denies() -> None:
    here, moved = AddressKey(ip_address("10.0.1.9")), LpmKey.host(ip_address("10.0.2.1"))
    endpoints = {here: endpoint_entry(EndpointFlag.TIERED_INGRESS)}
    kernel = Kernel({"nn_endpoint": endpoints})
    kernel.tables["nn_ipcache"] = OldTrie("nn_ipcache", {moved: always(U32(300))}, 1)
    with pytest.raises(ApplyError, match=r"no room; nothing of the change is in force"):
        kernel.policy({"nn_endpoint": endpoints, "nn_ipcache": {moved: U32(301)}})
    assert kernel.held()["nn_ipcache"] == {moved: U32(300)}


def test_an_address_that_goes_makes_room_for_one_that_comes() -> None:
    gone, comes = LpmKey.host(ip_address("10.0.1.9")), LpmKey.host(ip_address("10.0.1.10"))
    old, new = AddressKey(gone.addr), AddressKey(comes.addr)
    kernel = Kernel({"nn_ipcache": {gone: U32(300)}, "nn_endpoint": {old: endpoint_entry(0)}})
    for name in ("nn_ipcache", "nn_endpoint"):
        kernel.tables[name].max_entries = 1
    wanted: Tables = {"nn_ipcache": {comes: U32(300)}, "nn_endpoint": {new: endpoint_entry(0)}}
    kernel.policy(wanted)
    assert {name: kernel.held()[name] for name in wanted} == wanted


@pytest.mark.parametrize("table", ["nn_backend", "nn_member", "nn_revnat"])
def test_what_no_frontend_uses_makes_room_before_its_turn(table: str) -> None:
    """A Service goes and another one comes: both are in one change, and the map has room for one."""
    ports = [("", UDP, 53)]

    def wanted(number: int) -> Tables:
        objects = (
            service(f"s{number}", f"10.96.0.{number}", ports=ports),
            slice_(f"s{number}", f"10.0.1.{number}", f"10.0.2.{number}", ports=ports),
        )
        return Compiler().compile(store_of(*objects).snapshot(), LocalNode("node1"))[0].tables

    old, new = wanted(1), wanted(2)
    kernel = Kernel(old)
    kernel.tables[table].max_entries = len(old[table])
    done = kernel.services(new)
    assert {n: kernel.held()[n] for n in SERVICE_TABLES} == {n: dict(new[n]) for n in SERVICE_TABLES}
    # Each once, though some before their turn.
    assert done[table] == 2 * len(old[table])


def test_room_is_not_made_of_what_is_in_use() -> None:
    old = wanted_services(a=("10.0.1.1", "10.0.1.2"))
    kernel = Kernel(old)
    kernel.tables["nn_backend"].max_entries = 2
    with pytest.raises(FullError):
        kernel.services(wanted_services(a=("10.0.1.3", "10.0.1.4")))
    assert kernel.dangling() == []
    assert kernel.held()["nn_frontend"] == old["nn_frontend"]


def test_a_failure_names_what_was_not_written() -> None:
    wanted = wanted_services(a=("10.0.1.1",))
    writes = plan_services(wanted, {})
    tables = {name: FaultyTable(FakeTable(name), Fault(0)) for name in SERVICE_TABLES}
    with pytest.raises(ApplyError) as refused:
        apply(writes, tables, {name: {} for name in SERVICE_TABLES}, Counter())
    assert refused.value.left == tuple(writes)
