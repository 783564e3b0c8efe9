"""What waits for the grace period and what does not, and how a change that failed is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from nodenet.abi import U32, AddressKey, EndpointEntry, LpmKey, NumberVersions, PolicyKey, Rule, State
from nodenet.model import Direction
from nodenet.reconcile.apply import ApplyError
from nodenet.reconcile.maps import TABLES, Maps, Outcome
from nodenet.reconcile.switch import STATE_KEY
from nodenet.tables import Group
from nodenet.testing import FakeTable, Fault, FaultyTable, in_force

Tables = Mapping[str, Mapping[Any, Any]]
PODS = [ip_address(f"10.0.0.{number}") for number in range(1, 6)]


class ManualGrace:
    """Grace periods that end when the test says so. A wait ends them too."""

    def __init__(self) -> None:
        self.then: Callable[[], None] | None = None
        self.waits = 0
        self.broken = False

    def begin(self, then: Callable[[], None]) -> None:
        self.then = then

    def wait(self) -> None:
        self.waits += 1
        if self.broken:
            raise OSError(22, "no grace period (on purpose)")
        self.end()

    def end(self) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()


class Node:
    def __init__(self, fault: Fault | None = None) -> None:
        self.inner = {name: FakeTable(name) for name in TABLES}
        self.inner["nn_state"].update(STATE_KEY, State(0, 0))
        self.fault = fault or Fault(1 << 30)
        self.start()

    def start(self) -> None:
        self.grace = ManualGrace()
        self.maps = Maps({n: FaultyTable(table, self.fault) for n, table in self.inner.items()}, self.grace)

    def run(self, wanted: Tables) -> Outcome:
        outcome = Outcome(0)
        self.maps.read(outcome)
        empty: Tables = {name: {} for name in TABLES if name != "nn_state"}
        self.maps.write({**empty, **wanted}, outcome)
        return outcome

    def entries(self, name: str) -> dict[Any, Any]:
        return dict(self.inner[name].items())

    @property
    def state(self) -> State:
        found: State = self.entries("nn_state")[STATE_KEY]
        return found


def ipcache(*identities: int) -> Tables:
    return {"nn_ipcache": {LpmKey.host(ip): U32(n) for ip, n in zip(PODS, identities, strict=False)}}


def test_a_change_that_comes_alone_waits_for_nothing() -> None:
    node = Node()
    node.run(ipcache(300, 301))
    node.grace.end()
    waits = node.grace.waits
    outcome = node.run(ipcache(300))
    assert outcome.groups == [Group.SERVICES, Group.POLICY], "in force, and reported"
    assert in_force(node.inner)["nn_ipcache"] == ipcache(300)["nn_ipcache"]
    assert node.grace.waits == waits + 1, "for the grace period before it, which was over"
    assert len(node.entries("nn_ipcache")) == 2, "deleted later"
    node.grace.end()
    assert len(node.entries("nn_ipcache")) == 1
    assert node.run(ipcache(300)).writes == {"nn_ipcache": 1}, "the next run counts the delete"
    assert node.run(ipcache(300)).writes == {}


def test_the_next_change_waits_and_services_do_not() -> None:
    node = Node()
    node.run(ipcache(300, 301))
    node.run(ipcache(301))
    waits = node.grace.waits
    member = {"nn_revnat": {}}
    node.run({**ipcache(301), **member})
    assert node.grace.waits == waits
    node.run(ipcache(302))
    assert node.grace.waits == waits + 1
    assert len(node.entries("nn_ipcache")) == 1


def test_unchanged_values_cost_nothing() -> None:
    node = Node()
    node.run(ipcache(300, 301, 302, 303))
    before = node.entries("nn_ipcache")
    outcome = node.run(ipcache(300, 301, 302, 304))
    assert outcome.writes == {"nn_ipcache": 1, "nn_state": 1}
    assert node.entries("nn_ipcache").items() - before.items() == {(LpmKey.host(PODS[3]), NumberVersions(304, 303, 2))}


def test_an_unfinished_change_is_undone_before_its_number_is_used_again() -> None:
    node = Node()
    node.run(ipcache(300, 301, 302))
    generation = node.state.generation
    # Dies after two of three entries.
    node.fault.at, node.fault.times = node.fault.writes + 2, 1
    outcome = node.run(ipcache(310, 311, 312))
    assert isinstance(outcome.errors[0], ApplyError)
    assert "nothing of the change is in force" in str(outcome.errors[0])
    assert node.state.generation == generation
    assert in_force(node.inner)["nn_ipcache"] == ipcache(300, 301, 302)["nn_ipcache"]
    assert {value.since for value in node.entries("nn_ipcache").values()} == {generation, generation + 1}
    # The next change is another one: what it does not write must not come into force with it.
    node.run(ipcache(300, 301, 399))
    assert node.state.generation == generation + 1
    assert in_force(node.inner)["nn_ipcache"] == ipcache(300, 301, 399)["nn_ipcache"]


def test_the_next_agent_deletes_what_is_not_in_force() -> None:
    node = Node()
    node.run(ipcache(300, 301))
    node.run(ipcache(300))
    assert len(node.entries("nn_ipcache")) == 2
    node.start()
    outcome = node.run(ipcache(300))
    assert outcome.writes == {"nn_ipcache": 1}
    assert outcome.drift == {}
    assert len(node.entries("nn_ipcache")) == 1


def test_a_delete_that_failed_is_reported_and_tried_again() -> None:
    node = Node()
    node.run(ipcache(300, 301))
    node.run(ipcache(300))
    node.fault.at, node.fault.times = node.fault.writes, 2
    node.grace.end()
    assert len(node.entries("nn_ipcache")) == 2
    assert "nn_ipcache: delete" in str(node.run(ipcache(300)).errors[0])
    assert not node.run(ipcache(300)).errors
    assert len(node.entries("nn_ipcache")) == 1


def test_without_a_grace_period_nothing_is_written() -> None:
    node = Node()
    node.run(ipcache(300, 301))
    before, writes = node.entries("nn_ipcache"), node.fault.writes
    node.grace.broken = True
    (error,) = node.run(ipcache(300, 305)).errors
    assert "wait for programs" in str(error)
    assert (node.entries("nn_ipcache"), node.fault.writes) == (before, writes)
    node.grace.broken = False
    assert not node.run(ipcache(300, 305)).errors


@pytest.mark.parametrize("made", [False, True])
def test_after_a_switch_that_failed_the_maps_are_read_again(made: bool) -> None:
    node = Node()
    node.run(ipcache(300, 301))
    node.fault.at, node.fault.made = node.fault.writes + 1, made
    assert "nn_state: set" in str(node.run(ipcache(300, 305)).errors[0])
    outcome = node.run(ipcache(300, 306))
    assert not outcome.errors
    assert outcome.drift == {}
    assert in_force(node.inner)["nn_ipcache"] == ipcache(300, 306)["nn_ipcache"]


def test_entries_that_went_are_no_drift_for_a_comparison() -> None:
    """A prefix inside another one goes: until it is deleted, the kernel has it with the value of the other one."""
    node = Node()
    wide, inner = LpmKey(104, ip_address("10.0.0.0")), LpmKey(112, ip_address("10.1.0.0"))
    node.run({"nn_cidr": {wide: U32(1), inner: U32(2)}})
    node.run({"nn_cidr": {wide: U32(1)}})
    assert node.entries("nn_cidr")[inner].at(node.state.generation) == U32(1)
    node.maps.begin_comparison()
    while node.maps.comparing:
        assert not node.maps.compare_slice()
    node.grace.end()


def test_a_walk_that_read_an_entry_before_it_was_deleted_reports_no_drift() -> None:
    class Early(FakeTable):
        """As the kernel's maps: entries are read in batches, long before they are used."""

        def items(self) -> Any:
            return iter(list(super().items()))

    node = Node()
    node.inner["nn_ipcache"] = Early("nn_ipcache")
    node.start()
    numbers = range(1000)
    many = {LpmKey.host(ip_address(f"10.1.{n // 250}.{n % 250}")): U32(300) for n in numbers}
    node.run({"nn_ipcache": many})
    last = list(many)[-1]
    node.maps.begin_comparison()
    while not node.maps._comparison._walk or node.maps._comparison._left[0] != "nn_ipcache":
        assert not node.maps.compare_slice()
    fewer = {key: value for key, value in many.items() if key != last}
    node.run({"nn_ipcache": fewer})
    node.grace.end()
    node.run({"nn_ipcache": {**fewer, LpmKey.host(PODS[0]): U32(7), LpmKey.host(PODS[1]): U32(7)}})
    while node.maps.comparing:
        assert not node.maps.compare_slice()


def test_a_new_pod_with_rules_of_its_own_does_not_have_flows_judged_again() -> None:
    def pods(*numbers: int) -> Tables:
        return {
            "nn_endpoint": {AddressKey(PODS[n]): EndpointEntry(n, 300 + n, n, 1, "02:00:00:00:00:01") for n in numbers},
            "nn_ipcache": {LpmKey.host(PODS[n]): U32(300 + n) for n in numbers},
            "nn_policy": {PolicyKey(72, 300 + n, 0, Direction.INGRESS, 0, 0): Rule.allow(n) for n in numbers},
        }

    node = Node()
    node.run(pods(1))
    first = node.state
    node.run(pods(1, 2))
    assert node.state == State(first.generation + 1, first.recheck_from)
    node.run(pods(2))
    assert node.state == State(first.generation + 2, first.generation + 2)
