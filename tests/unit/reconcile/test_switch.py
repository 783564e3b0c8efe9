"""Changes of policy as entries with two versions and one switch."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.abi import (
    U32,
    AddressKey,
    EndpointEntry,
    EndpointFlag,
    EndpointVersions,
    LpmKey,
    NumberVersions,
    PolicyKey,
    Rule,
    RuleVersions,
    State,
)
from nodenet.abi.versions import is_in_force
from nodenet.model import Direction
from nodenet.reconcile.switch import STATE_KEY, SWITCHED, Change, covering, plan_policy, prefix_lengths

Tables = Mapping[str, Mapping[Any, Any]]

POD, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2")
# In force; after a switch; after a switch that has flows judged again.
NOW, SWITCH, RECHECK = State(6, 4), State(7, 4), State(7, 7)
CLOSED = int(EndpointFlag.ISOLATED_INGRESS | EndpointFlag.ISOLATED_EGRESS)


def policy(*rules: int, flags: int = 3, identity: int = 300, addresses: Mapping[Any, int] | None = None) -> Tables:
    return {
        "nn_policy": {PolicyKey(72, identity, rule, Direction.INGRESS, 0, 0): Rule.allow(rule) for rule in rules},
        "nn_ipcache": {LpmKey.host(a): U32(n) for a, n in (addresses or {POD: identity}).items()},
        "nn_endpoint": {AddressKey(POD): EndpointEntry(1, identity, 1, flags, "02:00:00:00:00:01")},
    }


def planned(after: Tables, before: Tables, state: State = NOW) -> Change | None:
    return plan_policy(after, {**before, "nn_state": {STATE_KEY: state}})


def shape(change: Change | None) -> list[str]:
    return [f"{'-' if w.is_delete else '+'}{w.table[3:]}" for w in change.writes] if change else []


@pytest.mark.parametrize(
    ("before", "after", "expected", "state"),
    [
        (policy(1), policy(1), [], None),
        # A further pod: one entry, which needs no switch.
        (policy(1), policy(1, addresses={POD: 300, OTHER: 301}), ["+ipcache"], None),
        # Two: a switch, but nothing that was judged is judged again.
        (policy(1), policy(1, addresses={POD: 300, OTHER: 301, ip_address("fd00::2"): 301}), ["+ipcache"] * 2, SWITCH),
        (policy(1), policy(1, 2), ["+policy"], RECHECK),
        (policy(1, 2), policy(2), ["-policy"], RECHECK),
        (policy(flags=0), policy(1), ["+policy", "+endpoint"], RECHECK),
        (policy(1), policy(1, identity=301), ["+policy", "+ipcache", "+endpoint", "-policy"], RECHECK),
        (policy(1, addresses={POD: 300, OTHER: 9}), policy(1), ["-ipcache"], RECHECK),
        # A pod with rules of its own.
        ({}, policy(1), ["+policy", "+ipcache", "+endpoint"], SWITCH),
    ],
)
def test_what_is_written_and_which_flows_are_judged_again(
    before: Tables, after: Tables, expected: list[str], state: State | None
) -> None:
    change = planned(after, before)
    assert shape(change) == expected
    assert (change.state if change else None) == state
    if change is not None:
        assert change.since == (change.state.generation if change.state else 6)


def test_an_endpoint_that_only_moves_its_interface_is_not_judged_again() -> None:
    after = policy(1)
    moved = {**after, "nn_endpoint": {AddressKey(POD): EndpointEntry(1, 300, 1, 3, "02:00:00:00:00:09")}}
    change = planned(moved, after)
    assert change is not None
    assert change.state is None


def records(change: Change | None) -> dict[Any, Any]:
    assert change is not None
    return {entry.key: entry.record(change.since) for entry in change.entries}


def test_a_new_or_another_endpoint_was_closed_and_one_that_goes_will_be() -> None:
    key, mac = AddressKey(POD), "02:00:00:00:00:01"
    old, other = EndpointEntry(1, 300, 1, 0, mac), EndpointEntry(2, 301, 2, 0, mac)
    both = {"nn_ipcache": {LpmKey.host(POD): U32(300)}}

    def of(before: EndpointEntry | None, after: EndpointEntry | None) -> EndpointVersions:
        tables = ({"nn_endpoint": {key: entry}} if entry else {} for entry in (before, after))
        held, wanted = tables
        found = records(planned({**wanted, **both}, held))[key]
        assert isinstance(found, EndpointVersions)
        return found

    new = of(None, old)
    assert (new.at(6), new.at(7)) == (old._replace(identity=0, flags=CLOSED), old)
    moved = of(old, other)
    assert (moved.at(6), moved.at(7)) == (other._replace(identity=0, flags=CLOSED), other)
    gone = of(old, None)
    assert (gone.at(6), gone.at(7)) == (old, old._replace(identity=0, flags=CLOSED))
    changed = of(old, old._replace(identity=9, flags=1))
    assert (changed.at(6), changed.at(7)) == (old, old._replace(identity=9, flags=1))


def test_a_prefix_that_comes_or_goes_gives_what_covers_it() -> None:
    wide, inner, deep = (LpmKey.of(ip_network(block)) for block in ("10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24"))
    everything = LpmKey.of(ip_network("::/0"))
    before = {"nn_cidr": {wide: U32(1), inner: U32(2), everything: U32(9)}}
    after = {"nn_cidr": {wide: U32(11), deep: U32(3)}}
    assert records(planned(after, before)) == {
        wide: NumberVersions(11, 1, 7),
        # Covered by the inner one before, by the wide one after, which changes too.
        deep: NumberVersions(3, 2, 7),
        inner: NumberVersions(11, 2, 7),
        everything: NumberVersions(0, 9, 7),
    }
    # IPv4 lies inside ::/0.
    alone = records(planned({"nn_cidr": {wide: U32(1)}}, {"nn_cidr": {everything: U32(9)}}))
    assert alone[wide] == NumberVersions(1, 9, 7)


def test_a_rule_of_a_port_that_goes_gives_the_rule_of_all_ports() -> None:
    port, all_ports = PolicyKey(96, 1, 2, Direction.EGRESS, 6, 80), PolicyKey(80, 1, 2, Direction.EGRESS, 6, 0)
    other = PolicyKey(72, 1, 3, Direction.EGRESS, 0, 0)
    before = {"nn_policy": {port: Rule.allow(1), other: Rule.allow(9)}}
    found = records(planned({"nn_policy": {all_ports: Rule.allow(2), other: Rule.allow(9)}}, before))
    assert found == {
        all_ports: RuleVersions(Rule.allow(2), Rule(0, 0), 7),
        port: RuleVersions(Rule.allow(2), Rule.allow(1), 7),
    }


@st.composite
def tries(draw: st.DrawFn) -> dict[LpmKey, U32]:
    found = {}
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            network = ip_network((draw(st.integers(0, 7)) << 29, draw(st.integers(0, 8))), strict=False)
        else:
            base = draw(st.sampled_from([0, 0xFFFF << 32, 1 << 127]))
            network = ip_network((base, draw(st.sampled_from([0, 1, 64, 90]))), strict=False)
        if network.version == 4 or not str(network).startswith("::ffff"):
            found[LpmKey.of(network)] = U32(draw(st.integers(1, 3)))
    return found


@settings(max_examples=300)
@given(tries(), tries(), st.integers(0, 0xFFFFFFFF))
def test_every_address_finds_the_old_or_the_new_region_whole(old: Any, new: Any, number: int) -> None:
    """Every address, in a kernel that has all entries of both states."""
    change = planned({"nn_cidr": new}, {"nn_cidr": old})
    union = {key: NumberVersions(value.value, value.value, 0) for key, value in old.items()}
    if change is not None:
        union |= records(change)
    generation = change.since if change is not None and change.state else 6

    def longest(table: Any, key: LpmKey) -> Any:
        return table.get(key) or covering(key, table, prefix_lengths(table))

    for address in (ip_address(number), ip_address(number << 96)):
        key = LpmKey.host(address)
        found = longest(union, key)
        if change is not None and change.state:
            assert (found.at(generation - 1) if found else None) == longest(old, key)
        assert (found.at(generation) if found else None) == longest(new, key)


def test_old_entries_are_written_again_before_their_age_is_unknown() -> None:
    before, after = policy(1), policy(1, 2)
    for generation in ((1 << 30) - 1, (1 << 31) - 1, (1 << 32) - 1):
        change = planned(after, before, State(generation, 4))
        assert change is not None
        since = (generation + 1) % (1 << 32)
        assert change.state == State(since, since), "flows are judged again, so recheck_from is never larger"
        assert len(change.entries) == sum(len(after[name]) for name in SWITCHED if name in after)
    change = planned(after, before, State(77, 4))
    assert change is not None
    assert len(change.entries) == 1


def test_generations_are_compared_across_their_wrap() -> None:
    assert is_in_force(0, 0)
    assert is_in_force(0xFFFFFFFF, 0)
    assert not is_in_force(0, 0xFFFFFFFF)
    assert is_in_force(5, 5 + (1 << 31) - 1)
