"""After any sequence of changes the maps are those of a compilation from nothing, and the plan knows what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netpolicy.holders import Standing
from netpolicy.parse import network_policy
from netpolicy.parse_cluster import cluster_policy
from netpolicy.types import ClusterPolicy, NetworkPolicy, Protocol
from nodenet import kinds
from nodenet.compile import DesiredState, LocalNode, Names, compile_once
from nodenet.compile.identities import HIGH_CARDINALITY_LABELS
from nodenet.compile.shares import DEFAULT_ROOM, Room
from nodenet.endpoint import AttachmentKey
from nodenet.engine import Engine
from nodenet.kinds import KINDS, Kind
from nodenet.model import Endpoint, NamedPort, Namespace, Node, ObjectRef, Pod
from nodenet.reconcile.apply import ApplyError
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Op, Removal, Snapshot, Store, StoreEvent, listings
from nodenet.testing import Fault, FaultyTable, fake_tables, in_force
from tests.unit.netpolicy.strategies import NAMESPACES, cluster_policies, labels, rules, selectors

NODE = "node1"
LOCAL = LocalNode(NODE, frozenset({ip_address("10.9.0.1")}))
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "10.1.0.1"]
REFS = st.builds(ObjectRef, st.sampled_from(NAMESPACES), st.sampled_from("ab"))
POD_LABELS = st.builds(
    lambda plain, busy: plain | busy,
    labels(),
    st.sampled_from([{}, {}, {min(HIGH_CARDINALITY_LABELS): "1"}, {min(HIGH_CARDINALITY_LABELS): "2"}]),
)
PORTS = st.lists(
    st.sampled_from([NamedPort("http", Protocol.TCP, 80), NamedPort("dns", Protocol.UDP, 53)]), max_size=2, unique=True
)


def _pod(ref: ObjectRef, found: dict[str, str], ips: list[str], ports: list[NamedPort], phase: str, ready: bool) -> Pod:
    standing = Standing(ready=ready)
    addresses = tuple(map(ip_address, ips))
    return Pod(ref, f"uid-{ref.name}", found, NODE, addresses, phase == "host", phase, tuple(ports), standing=standing)


PODS = st.builds(
    _pod,
    REFS,
    POD_LABELS,
    st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True),
    PORTS,
    st.sampled_from(["Running", "Running", "Pending", "Succeeded", "host"]),
    st.booleans(),
)
SPACES = st.builds(Namespace, st.sampled_from(NAMESPACES), labels())
NODES = st.builds(
    lambda name, ips, cidr, own: Node(name, tuple(map(ip_address, ips)), (ip_network(cidr),), own),
    st.sampled_from([NODE, "node2"]),
    st.lists(st.sampled_from(["10.0.0.3", "10.9.0.2", "10.9.0.3"]), max_size=2, unique=True),
    st.sampled_from(["10.1.0.0/24", "10.2.0.0/24"]),
    labels(),
)


@st.composite
def policy(draw: st.DrawFn) -> NetworkPolicy:
    namespace, name = draw(st.tuples(st.sampled_from(NAMESPACES), st.sampled_from("pq")))
    selector = draw(selectors())
    if draw(st.integers(0, 9)) == 0:
        # This label tells pods apart from now on: every identity becomes another.
        selector = {"matchExpressions": [{"key": min(HIGH_CARDINALITY_LABELS), "operator": "Exists"}]}
    spec: dict[str, Any] = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"]}
    spec["ingress"] = draw(st.lists(rules("from"), max_size=2))
    spec["egress"] = draw(st.lists(rules("to"), max_size=2))
    return network_policy({"metadata": {"namespace": namespace, "name": name}, "spec": spec})


@st.composite
def wide_policy(draw: st.DrawFn) -> ClusterPolicy:
    (found,) = draw(cluster_policies(1).filter(len))
    found["metadata"]["name"] = draw(st.sampled_from("rst"))
    return cluster_policy(found)


ENDPOINTS = st.builds(
    lambda ref, number, ip: Endpoint(
        number, f"c{number}", "eth0", "", f"v{number}", number, "02:00:00:00:00:01", (ip_address(ip),), ref
    ),
    REFS,
    st.integers(1, 3),
    st.sampled_from(ADDRESSES),
)
GONE = st.one_of(
    st.tuples(st.sampled_from([kinds.POD]), REFS),
    st.tuples(
        st.sampled_from([kinds.NETWORK_POLICY]),
        st.builds(ObjectRef, st.sampled_from(NAMESPACES), st.sampled_from("pq")),
    ),
    st.tuples(st.sampled_from([kinds.CLUSTER_NETWORK_POLICY]), st.sampled_from([ObjectRef("", n) for n in "rst"])),
    st.tuples(st.sampled_from([kinds.NAMESPACE]), st.builds(lambda n: ObjectRef("", n), st.sampled_from(NAMESPACES))),
    st.tuples(
        st.sampled_from([kinds.ENDPOINT]), st.builds(lambda n: AttachmentKey(f"c{n}", "eth0"), st.integers(1, 3))
    ),
)
# Little room: what is left out depends on the cluster as it is, not on how it came to be.
ROOMS = st.sampled_from([DEFAULT_ROOM, DEFAULT_ROOM, Room(40, 6), Room(10, 3), Room(1000, 2)])
STEPS = st.lists(
    st.lists(PODS | PODS | SPACES | NODES | policy() | wide_policy() | ENDPOINTS | GONE, max_size=4), max_size=8
)


def events(changes: Iterable[Any]) -> list[StoreEvent]:
    """Deltas; a tuple of kind and key is a removal."""
    return [Removal(*c) if isinstance(c, tuple) and isinstance(c[0], Kind) else Delta(Op.MODIFIED, c) for c in changes]


def _from_nothing(snapshot: Snapshot, local: LocalNode = LOCAL) -> tuple[DesiredState, Names]:
    """Compiled by somebody who never saw another state than this one."""
    store = Store()
    for event in listings(obj for kind in KINDS for obj in getattr(snapshot, kind.place).values()):
        store.feed(event)
    return compile_once(store.snapshot(), local)


def _plain(tables: Any) -> dict[str, dict[Any, Any]]:
    return {name: dict(table.items()) for name, table in tables.items()}


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.booleans(), min_size=8, max_size=8), ROOMS)
def test_the_maps_are_those_of_a_compilation_from_nothing(
    steps: list[list[Any]], whole: list[bool], room: Room
) -> None:
    kernel, fault, local = fake_tables(), Fault(1 << 30), replace(LOCAL, room=room)
    engine = Engine(local, {name: FaultyTable(table, fault) for name, table in kernel.items()}, NoPrograms())
    engine.feed(*listings([]))
    for changes, is_whole in zip(steps, whole, strict=False):
        engine.feed(*events(changes))
        # A run that is not whole fails with its first write, if it has any.
        fault.at = 1 << 30 if is_whole else fault.writes
        try:
            engine.run_once()
        except ApplyError:
            assert not is_whole
        expected, names = _from_nothing(engine.snapshot(), local)
        found = engine.current
        # A ClusterNetworkPolicy that is left out has an entry in each direction, for each of three pods.
        assert len(expected.tables["nn_policy"]) <= room.entries + 2 * 3 * 3
        # ::/0 gets 0.0.0.0/0 as a hole.
        assert len(expected.tables["nn_cidr"]) <= room.prefixes + 1
        assert found.names.left_out == names.left_out
        assert _plain(found.desired.tables) == _plain(expected.tables)
        assert found.names.isolated_by == names.isolated_by
        assert dict(found.names.rules.items()) == dict(names.rules.items())
        assert dict(found.names.identities.items()) == dict(names.identities.items())
        assert dict(found.names.regions.items()) == dict(names.regions.items())
        if is_whole:
            # What the plan takes from the tables' own knowledge of their changes makes the kernel right.
            held = in_force(kernel)
            for name, table in expected.tables.items():
                assert held[name] == dict(table.items()), name
