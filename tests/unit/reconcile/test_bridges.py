"""Allows for identities that a change ends (nodenet.reconcile.bridges)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from nodenet.abi import U32, AddressKey, EndpointEntry, LpmKey, PolicyKey, State
from nodenet.model import Direction
from nodenet.reconcile.bridges import Entries, bridges
from nodenet.reconcile.plan import Tables, plan_policy

# Identities of pods, and the numbers of their rules.
OLD, NEW, OTHER_NEW, SERVER, NEW_SERVER, RULE = 1000, 1001, 1002, 2000, 2001, 77


def allow(subject: int, peer: int, port: int = 0) -> PolicyKey:
    bits, protocol = (72, 0) if not port else (96, 6)
    return PolicyKey(bits, subject, peer, Direction.EGRESS, protocol, port)


def state(identities: Mapping[str, int], local: str, *allows: PolicyKey) -> Tables:
    return {
        "nn_policy": {key: U32(RULE) for key in allows},
        "nn_ipcache": {LpmKey.host(ip_address(ip)): U32(number) for ip, number in identities.items()},
        "nn_endpoint": {
            AddressKey(ip_address(ip)): EndpointEntry(1, identities[ip], 1, 2, "02:00:00:00:00:01")
            for ip in local.split()
        },
    }


def between(before: Tables, after: Tables) -> Entries:
    return bridges(after, before, after["nn_endpoint"], after["nn_ipcache"])


def test_old_subject_and_old_peer_are_judged_like_their_successors() -> None:
    before = state({"10.0.0.1": OLD, "10.0.0.2": SERVER}, "10.0.0.1", allow(OLD, SERVER))
    after = state({"10.0.0.1": NEW, "10.0.0.2": NEW_SERVER}, "10.0.0.1", allow(NEW, NEW_SERVER, 80))
    # The old pair is allowed by the old state; the new one allows it port 80, and so do the mixtures.
    assert set(between(before, after)) == {
        allow(OLD, NEW_SERVER, 80),
        allow(NEW, SERVER, 80),
        allow(OLD, SERVER, 80),
    }
    assert set(between(before, after).values()) == {U32(RULE)}


def test_of_several_successors_only_what_all_may_do_counts() -> None:
    before = state({"10.0.0.1": OLD, "10.0.0.3": OLD, "10.0.0.2": SERVER}, "10.0.0.1 10.0.0.3", allow(OLD, SERVER))
    after = state(
        {"10.0.0.1": NEW, "10.0.0.3": OTHER_NEW, "10.0.0.2": SERVER},
        "10.0.0.1 10.0.0.3",
        allow(NEW, SERVER, 80),
        allow(OTHER_NEW, SERVER, 80),
        allow(OTHER_NEW, SERVER, 81),
    )
    assert set(between(before, after)) == {allow(OLD, SERVER, 80)}


def test_an_identity_that_a_pod_keeps_gets_nothing() -> None:
    before = state({"10.0.0.1": OLD, "10.0.0.2": SERVER, "10.0.0.4": SERVER}, "10.0.0.1", allow(OLD, SERVER))
    after = state({"10.0.0.1": OLD, "10.0.0.2": NEW_SERVER, "10.0.0.4": SERVER}, "10.0.0.1", allow(OLD, NEW_SERVER))
    assert between(before, after) == {}


def test_one_pod_of_two_families_needs_none() -> None:
    before = state({"10.0.0.1": OLD, "fd00::1": OLD}, "10.0.0.1 fd00::1", allow(OLD, SERVER))
    after = state({"10.0.0.1": NEW, "fd00::1": NEW}, "10.0.0.1 fd00::1", allow(NEW, SERVER))
    assert between(before, after) == {}


def test_reserved_and_unknown_identities_get_no_bridges() -> None:
    """A node's address that a pod gets, and a pod whose labels cannot be read any more."""
    before = state({"10.0.0.1": 6, "10.0.0.2": SERVER}, "10.0.0.2", allow(SERVER, 6))
    after = state({"10.0.0.1": NEW, "10.0.0.2": NEW_SERVER}, "10.0.0.2", allow(NEW_SERVER, NEW))
    assert {key.peer for key in between(before, after)} == {NEW}
    unknown = state({"10.0.0.1": 0, "10.0.0.2": 0}, "10.0.0.2", allow(0, 0))
    assert between(before, unknown) == {}


def test_the_plan_inserts_them_first_and_deletes_them_last() -> None:
    before: dict[str, Any] = dict(state({"10.0.0.1": OLD, "10.0.0.2": SERVER}, "10.0.0.1", allow(OLD, SERVER)))
    after = state({"10.0.0.1": NEW, "10.0.0.2": NEW_SERVER}, "10.0.0.1", allow(NEW, NEW_SERVER))
    before["nn_state"] = {U32(0): State(2)}
    writes = plan_policy(after, before)
    shape = [f"{'-' if w.is_delete else '+'}{w.table[3:]}" for w in writes[1:-1]]
    assert shape == ["+policy"] * 3 + ["+ipcache"] * 2 + ["+endpoint"] + ["-policy"] * 3
    held = dict(before["nn_policy"])
    for write in writes:
        if write.table == "nn_policy":
            held.update({write.key: write.value}) if not write.is_delete else held.pop(write.key)
    assert held == after["nn_policy"]
