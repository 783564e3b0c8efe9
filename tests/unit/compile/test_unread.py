"""Pods whose labels are not known: their own, or those of their Namespace, which may arrive later than the pod."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.parse_cluster import cluster_policy
from nodenet.abi import AddressKey, LpmKey
from nodenet.compile import Compiler, LocalNode, compile_once
from nodenet.compile.endpoints import ISOLATED
from nodenet.compile.unread import UnreadLabels, reason_unread
from nodenet.evolved import changed_keys, evolve
from nodenet.model import Direction, Identity, Namespace, ObjectRef, Pod
from nodenet.store import Op, Store
from tests.unit.compile.build import endpoint, pod, store_of
from tests.unit.netpolicy.datapath import Datapath, Packet

LOCAL = LocalNode("node1")
RED = Namespace("far", {"team": "red"})
UNREAD = Namespace("far", {}, labels_unread=True)
FAR = replace(pod("caller", "10.0.2.5"), ref=ObjectRef("far", "caller"))
WEB = pod("web", "10.0.1.9", labels={"app": "web"}), endpoint(1, "web", "10.0.1.9")
CALL = Packet(FAR.ips[0], WEB[0].ips[0], "TCP", 80)
# web may be called by all but the team red.
POLICY = cluster_policy(
    {
        "metadata": {"name": "no-red"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "red"}}}]}],
        },
    }
)


def allows(store: Store, compiler: Compiler | None = None) -> bool:
    desired, _ = (compiler or Compiler()).compile(store.snapshot(), LOCAL)
    datapath = Datapath()
    names = ("nn_policy", "nn_cidr", "nn_ipcache", "nn_endpoint")
    datapath.load({name: dict(desired.tables[name].items()) for name in names})
    assert datapath.allows(Direction.INGRESS, replace_source(CALL, "192.0.2.1")), "the world may call"
    return datapath.allows(Direction.INGRESS, CALL)


def replace_source(packet: Packet, address: str) -> Packet:
    return packet._replace(source=ip_address(address))


@pytest.mark.parametrize("first", [None, UNREAD])
def test_a_deny_of_namespace_labels_holds_before_the_labels_are_known(first: Namespace | None) -> None:
    """The pod's watch is ahead of the watch of Namespaces."""
    store = store_of(FAR, *WEB, POLICY, *([first] if first else []))
    compiler = Compiler()
    assert not allows(store)
    assert not allows(store, compiler)
    store.apply(Op.MODIFIED, RED)
    assert not allows(store, compiler)
    store.apply(Op.MODIFIED, replace(RED, labels={"team": "blue"}))
    assert allows(store, compiler)
    store.apply(Op.DELETED, RED)
    assert not allows(store, compiler)


def test_a_deny_of_a_pod_whose_own_labels_cannot_be_read_holds() -> None:
    blue = Namespace("far", {"team": "blue"})
    assert allows(store_of(FAR, blue, *WEB, POLICY))
    assert not allows(store_of(replace(FAR, labels_unread=True), blue, *WEB, POLICY))


def test_an_endpoint_of_an_unknown_namespace_is_isolated_until_it_is_known() -> None:
    compiler = Compiler()
    attached = replace(endpoint(1, "caller", "10.0.2.5"), pod=FAR.ref)
    store = store_of(FAR, attached)
    key = AddressKey(FAR.ips[0])
    state, names = compiler.compile(store.snapshot(), LOCAL)
    assert (state.tables["nn_endpoint"][key].identity, state.tables["nn_endpoint"][key].flags) == (0, int(ISOLATED))
    assert len(names.unknown_endpoints) == 1
    store.apply(Op.ADDED, RED)
    state, names = compiler.compile(store.snapshot(), LOCAL)
    assert state.tables["nn_endpoint"][key].identity > 255
    assert state.tables["nn_endpoint"][key].flags == 0
    assert not names.unknown_endpoints


def test_an_address_of_an_unknown_namespace_is_that_of_an_unmanaged_pod() -> None:
    host = replace(FAR, ref=ObjectRef("far", "host"), ips=(ip_address("192.168.0.9"),), host_network=True)
    done = replace(FAR, ref=ObjectRef("far", "done"), ips=(ip_address("10.0.2.6"),), phase="Succeeded")
    table = compile_once(store_of(FAR, host, done).snapshot(), LOCAL)[0].tables["nn_ipcache"]
    found = {key.addr: value.value for key, value in table.items()}
    assert found == {FAR.ips[0]: Identity.UNMANAGED}
    assert LpmKey.host(FAR.ips[0]) in table


def test_the_reason_is_named() -> None:
    far = ObjectRef("", "far")
    assert reason_unread(FAR, {}) == "the API has not sent Namespace far yet"
    assert reason_unread(FAR, {far: UNREAD}) == "a label of Namespace far could not be read"
    assert reason_unread(replace(FAR, labels_unread=True), {far: RED}) == "a label of the pod could not be read"
    assert not reason_unread(FAR, {far: RED})


def test_pods_of_known_namespaces_are_the_same_object() -> None:
    pods = {FAR.ref: FAR}
    assert UnreadLabels().compile(pods, {ObjectRef("", "far"): RED}) is pods


SPACES = ("a", "b", "c")
PODS = [ObjectRef(space, f"p{n}") for space in SPACES for n in range(3)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(PODS), st.sampled_from(["", "one", "two", "unread"])),
        st.tuples(st.sampled_from(SPACES), st.sampled_from(["", "known", "other", "unread"])),
    ),
    max_size=30,
)


@given(STEPS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_step_by_step_is_what_a_new_one_finds(steps: list[tuple[ObjectRef | str, str]], skipped: list[bool]) -> None:
    followed = UnreadLabels()
    pods, spaces = evolve({}, {}), evolve({}, {})
    last: dict[ObjectRef, Pod] = {}
    table = followed.compile(pods, spaces)
    for (what, value), skip in zip(steps, skipped, strict=False):
        if isinstance(what, str):
            space = Namespace(what, {"v": value}, value == "unread") if value else None
            spaces = evolve(spaces, {ObjectRef("", what): space})
        else:
            one = replace(FAR, ref=what, labels={"v": value}, labels_unread=value == "unread") if value else None
            pods = evolve(pods, {what: one})
        if skip:
            continue
        after = followed.compile(pods, spaces)
        expected = {ref: bool(reason_unread(one, spaces)) for ref, one in pods.items()}
        assert {ref: one.labels_unread for ref, one in after.items()} == expected
        assert {ref: one.labels for ref, one in after.items()} == {ref: one.labels for ref, one in pods.items()}
        # What the next parts see of it: each key that differs is among the changed ones.
        changed = changed_keys(table, after)
        assert {ref for ref in {*last, *after} if last.get(ref) != after.get(ref)} <= {*changed}
        table, last = after, dict(after.items())
