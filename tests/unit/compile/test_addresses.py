"""Who an address is, and what an endpoint is allowed before its pod is known."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netpolicy.holders import Standing
from netpolicy.parse import network_policy
from nodenet.abi import U32, AddressKey, EndpointFlag, LpmKey
from nodenet.compile import Compiler, LocalNode, compile_once
from nodenet.compile.endpoints import ISOLATED
from nodenet.compile.identities import restore
from nodenet.compile.ids import IdentityKey, Ids
from nodenet.endpoint import AttachmentKey
from nodenet.model import Identity, Namespace
from nodenet.store import Op
from tests.unit.compile.build import endpoint, node, pod, service, slice_, store_of

LOCAL = LocalNode("node1", frozenset({ip_address("10.0.1.1")}))
DENY = network_policy(
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
)


def identity(tables: object, ip: str) -> int | None:
    found = tables.get(LpmKey.host(ip_address(ip)))  # type: ignore[attr-defined]
    return found.value if found else None


def test_nodes_gateways_and_local_addresses() -> None:
    store = store_of(
        node("node1", "192.168.0.1", cidrs=["10.0.1.0/24"]),
        node("node2", "192.168.0.2", cidrs=["10.0.2.0/24", "fd00:2::/64"]),
    )
    ipcache = compile_once(store.snapshot(), LOCAL)[0].tables["nn_ipcache"]
    host = {str(key.addr) for key, value in ipcache.items() if value == U32(Identity.HOST)}
    remote = {str(key.addr) for key, value in ipcache.items() if value == U32(Identity.REMOTE_NODE)}
    assert host == {"192.168.0.1", "10.0.1.1"}
    assert remote == {"192.168.0.2", "10.0.2.1", "fd00:2::1"}


def test_a_pod_with_the_first_address_of_a_pod_network_is_a_pod() -> None:
    """The gateway there is a guess: not every node's IPAM keeps the first address."""
    store = store_of(
        pod("a", "10.0.2.1", "fd00:2::1", labels={"app": "x"}),
        pod("b", "192.168.0.2", labels={"app": "x"}),
        node("node2", "192.168.0.2", cidrs=["10.0.2.0/24", "fd00:2::/64"]),
    )
    ipcache = compile_once(store.snapshot(), LOCAL)[0].tables["nn_ipcache"]
    assert identity(ipcache, "10.0.2.1") == identity(ipcache, "fd00:2::1") >= 256  # type: ignore[operator]
    assert identity(ipcache, "192.168.0.2") == Identity.REMOTE_NODE


def test_pods_have_their_identity_unless_finished_or_on_the_host_network() -> None:
    store = store_of(
        pod("a", "10.0.2.5", "fd00::5", labels={"app": "x"}),
        pod("b", "10.0.2.6", labels={"app": "x"}),
        pod("c", "10.0.2.7", phase="Succeeded"),
        pod("d", "192.168.0.2", host_network=True),
        pod("e"),
        node("node2", "192.168.0.2"),
    )
    ipcache = compile_once(store.snapshot(), LOCAL)[0].tables["nn_ipcache"]
    assert identity(ipcache, "10.0.2.5") == identity(ipcache, "fd00::5") == identity(ipcache, "10.0.2.6") >= 256  # type: ignore[operator]
    assert identity(ipcache, "10.0.2.7") is None
    assert identity(ipcache, "192.168.0.2") == Identity.REMOTE_NODE


def test_a_pod_that_lists_an_address_twice_can_be_deleted() -> None:
    twice = pod("a", "10.0.2.5", "10.0.2.5")
    store, compiler = store_of(twice), Compiler()
    assert identity(compiler.compile(store.snapshot(), LOCAL)[0].tables["nn_ipcache"], "10.0.2.5")
    store.apply(Op.DELETED, twice)
    assert identity(compiler.compile(store.snapshot(), LOCAL)[0].tables["nn_ipcache"], "10.0.2.5") is None


def test_a_local_endpoint_is_known_before_its_status_and_over_a_stale_one() -> None:
    store = store_of(
        pod("new", labels={"app": "new"}),
        pod("old", "10.0.1.9", labels={"app": "old"}),
        endpoint(1, "new", "10.0.1.9", uid="uid-new"),
    )
    state, names = compile_once(store.snapshot(), LOCAL)
    number = identity(state.tables["nn_ipcache"], "10.0.1.9")
    assert number is not None
    assert names.identities[number].mapping == {"app": "new"}
    entry = state.tables["nn_endpoint"][AddressKey(ip_address("10.0.1.9"))]
    assert (entry.identity, entry.flags, entry.ifindex, entry.endpoint_id) == (number, 0, 101, 1)
    assert not names.unknown_endpoints


def test_an_endpoint_without_its_pod_is_isolated_and_nobody() -> None:
    stale = pod("web", "10.0.1.9", uid="uid-before", labels={"app": "web"})
    store = store_of(stale, endpoint(1, "web", "10.0.1.9", uid="uid-after"), endpoint(2, "ghost", "10.0.1.10"))
    state, names = compile_once(store.snapshot(), LOCAL)
    for ip in ("10.0.1.9", "10.0.1.10"):
        entry = state.tables["nn_endpoint"][AddressKey(ip_address(ip))]
        assert (entry.identity, entry.flags) == (0, int(ISOLATED))
        assert identity(state.tables["nn_ipcache"], ip) is None
    assert names.unknown_endpoints == {AttachmentKey("container1", "eth0"), AttachmentKey("container2", "eth0")}


def test_a_bridged_endpoint_says_so_beside_its_isolation() -> None:
    bridged = replace(endpoint(1, "web", "10.0.1.9"), bridged=True)
    store = store_of(pod("web", "10.0.1.9"), bridged, endpoint(2, "ghost", "10.0.1.10"), DENY)
    on = compile_once(store.snapshot(), LOCAL)[0].tables["nn_endpoint"]
    assert on[AddressKey(ip_address("10.0.1.9"))].flags == EndpointFlag.ISOLATED_INGRESS | EndpointFlag.NO_REDIRECT
    assert on[AddressKey(ip_address("10.0.1.10"))].flags == ISOLATED
    off = compile_once(store.snapshot(), LocalNode("node1", enforce_policy=False))[0].tables["nn_endpoint"]
    assert off[AddressKey(ip_address("10.0.1.9"))].flags == EndpointFlag.NO_REDIRECT


def test_policy_isolates_endpoints_and_can_be_switched_off() -> None:
    store = store_of(pod("web", "10.0.1.9"), endpoint(1, "web", "10.0.1.9"), endpoint(2, "ghost", "10.0.1.10"), DENY)
    on = compile_once(store.snapshot(), LOCAL)[0].tables["nn_endpoint"]
    off = compile_once(store.snapshot(), LocalNode("node1", enforce_policy=False))[0].tables["nn_endpoint"]
    assert [entry.flags for entry in on.values()] == [1, 3]
    assert [entry.flags for entry in off.values()] == [0, 0]


def test_what_a_change_does_not_touch_is_the_same_object() -> None:
    store = store_of(
        pod("web", "10.0.1.9"), endpoint(1, "web", "10.0.1.9"), service("s", "10.96.0.1"), slice_("s", "10.0.1.9")
    )
    compiler = Compiler()
    first = compiler.compile(store.snapshot(), LOCAL)[0].tables
    store.apply(Op.ADDED, service("t", "10.96.0.2"))
    second = compiler.compile(store.snapshot(), LOCAL)[0].tables
    assert [name for name in first if first[name] is not second[name]] == [
        "nn_frontend",
        "nn_service_addr",
        "nn_revnat",
    ]
    store.apply(Op.ADDED, pod("more", "10.0.1.10"))
    third = compiler.compile(store.snapshot(), LOCAL)[0].tables
    assert third["nn_frontend"] is second["nn_frontend"]
    assert third["nn_ipcache"] != second["nn_ipcache"]


def test_of_two_pods_with_one_address_the_live_one_gives_the_identity() -> None:
    """Of another node: here an endpoint record would decide. An ipBlock with a named port follows the same pod."""
    live = pod("live", "10.0.2.5", labels={"app": "good"}, standing=Standing(ready=True))
    for name in ("a-ghost", "z-ghost"):
        for ghost in (Standing(lasting=False, ready=True), Standing()):
            store = store_of(live, pod(name, "10.0.2.5", labels={"app": "bad"}, standing=ghost))
            state, names = compile_once(store.snapshot(), LOCAL)
            number = identity(state.tables["nn_ipcache"], "10.0.2.5")
            assert number is not None
            assert names.identities[number].mapping == {"app": "good"}
            # The live pod terminates: the address is no longer its own.
            store.apply(Op.MODIFIED, replace(live, phase="Succeeded"))
            state, names = compile_once(store.snapshot(), LOCAL)
            number = identity(state.tables["nn_ipcache"], "10.0.2.5")
            assert number is not None
            assert names.identities[number].mapping == {"app": "bad"}


def test_numbers_are_restored_by_the_pod_that_has_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    live = pod("live", "10.0.2.5", labels={"app": "good"}, standing=Standing(ready=True))
    ghost = pod("a-ghost", "10.0.2.5", labels={"app": "bad"})
    restored: list[tuple[IdentityKey, int]] = []
    ids = Ids()
    monkeypatch.setattr(type(ids.identities), "restore", lambda _self, pairs: restored.extend(pairs))
    ipcache = {LpmKey.host(ip_address("10.0.2.5")): U32(4711)}
    restore(ids, {p.ref: p for p in (live, ghost)}, (), ipcache, {})
    assert [(key.labels.mapping, number) for key, number in restored] == [({"app": "good"}, 4711)]


def test_labels_that_cannot_be_read_isolate_and_match_nobody() -> None:
    """The pod's own, or its namespace's. The address gets no identity of another pod that shows it."""
    ghost = pod("ghost", "10.0.1.9", "10.0.2.5", labels={"app": "x"})
    for unread in (
        (pod("web", "10.0.1.9", labels_unread=True, standing=Standing(ready=True)), endpoint(1, "web", "10.0.1.9")),
        (Namespace("default", {}, labels_unread=True), pod("web", "10.0.1.9"), endpoint(1, "web", "10.0.1.9")),
    ):
        state, names = compile_once(store_of(ghost, *unread).snapshot(), LOCAL)
        entry = state.tables["nn_endpoint"][AddressKey(ip_address("10.0.1.9"))]
        assert (entry.identity, entry.flags) == (0, int(ISOLATED))
        assert identity(state.tables["nn_ipcache"], "10.0.1.9") is None
        assert names.unknown_endpoints == {AttachmentKey("container1", "eth0")}
    remote = pod("far", "10.0.2.5", labels_unread=True, standing=Standing(ready=True))
    tables = compile_once(store_of(ghost, remote).snapshot(), LOCAL)[0].tables
    assert identity(tables["nn_ipcache"], "10.0.2.5") == Identity.UNMANAGED
