"""Which endpoints a Service port uses on this node: kube-proxy's answers, row by row and against a second reading."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.compile import compile_once
from nodenet.compile.backends import READY, TERMINATING, Candidate, Here, choose
from nodenet.compile.ids import Ids
from nodenet.compile.lb import ServiceCompiler
from nodenet.compile.state import LocalNode
from nodenet.model import Node, SliceEndpoint
from tests.unit.compile.build import UDP, service, slice_, store_of
from tests.unit.compile.test_lb import VIP, answers, compile_services

HERE = Here("node1", "a")
GONE = (False, True, True)


def end(
    last: int,
    node: str = "",
    zones: str = "",
    nodes: tuple[str, ...] = (),
    state: tuple[bool, bool, bool] = (True, True, False),
) -> SliceEndpoint:
    return SliceEndpoint((ip_address(f"10.0.0.{last}"),), *state, node, None, tuple(zones), nodes)


def used(*endpoints: SliceEndpoint, here: Here = HERE, **fields: Any) -> list[int] | None:
    """The last bytes of the backends' addresses."""
    one, slices = service("web", VIP, **fields), slice_("web", *endpoints)
    tables = compile_services({one.ref: one}, {slices.ref: slices}, Ids(), here=here)
    found = answers(tables)
    return None if found is None else [int(text.split(":")[0].rpartition(".")[2]) for text in found]


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        # Every ready endpoint has a node hint, and one names this node.
        ([end(1, nodes=("node1",)), end(2, nodes=("node2",))], [1]),
        # No hint names this node: all.
        ([end(1, nodes=("node3",)), end(2, nodes=("node2",))], [1, 2]),
        # One has no hint: all.
        ([end(1, nodes=("node1",)), end(2)], [1, 2]),
        # Zones: the same three.
        ([end(1, zones="a"), end(2, zones="b"), end(3, zones="ab")], [1, 3]),
        ([end(1, zones="c"), end(2, zones="b")], [1, 2]),
        ([end(1, zones="a"), end(2)], [1, 2]),
        # Node hints come first, and zone hints are used if they do not apply.
        ([end(1, zones="a", nodes=("node2",)), end(2, zones="a", nodes=("node1",))], [2]),
        ([end(1, zones="a", nodes=("node2",)), end(2, zones="b", nodes=("node3",))], [1]),
        # An endpoint that is not ready has no say.
        ([end(1, zones="a"), end(2, zones="b"), end(3, state=GONE)], [1]),
        # Terminating endpoints are the last resort, whatever their hints are.
        ([end(1, zones="a", state=GONE), end(2, zones="b", state=GONE)], [1, 2]),
    ],
)
def test_topology(endpoints: list[SliceEndpoint], expected: list[int]) -> None:
    assert used(*endpoints) == expected


def test_a_node_without_a_zone_ignores_zone_hints() -> None:
    assert used(end(1, zones="a"), end(2, zones="b"), here=Here("node1")) == [1, 2]


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ([end(1, "node1"), end(2, "node2")], [1]),
        ([end(1, "node1", state=GONE), end(2, "node2")], [1]),
        ([end(1, "node1", state=GONE), end(2, "node1")], [2]),
        ([end(2, "node2")], []),
        # Topology does not apply to local endpoints.
        ([end(1, "node1", zones="b"), end(2, "node2", zones="a")], [1]),
    ],
)
def test_the_policy_local(endpoints: list[SliceEndpoint], expected: list[int]) -> None:
    assert used(*endpoints, internal_local=True) == expected


def test_udp_flows_keep_what_topology_or_policy_excludes() -> None:
    one = service("dns", VIP, ports=[("", UDP, 53)], internal_local=True)
    slices = slice_("dns", end(1, "node1"), end(2, "node2"), end(3, state=GONE), ports=[("", UDP, 53)])
    tables = compile_services({one.ref: one}, {slices.ref: slices}, Ids(), here=HERE)
    assert answers(tables, port=53, protocol=UDP) == ["10.0.0.1:53"]
    assert sorted(str(backend.addr) for backend in tables.members.values()) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_name_and_zone_of_the_node_are_inputs() -> None:
    node = Node("node1", labels={"topology.kubernetes.io/zone": "a"})
    objects = [service("web", VIP), slice_("web", end(1, zones="a"), end(2, zones="b")), node]
    for name, count in (("node1", 1), ("node2", 2)):
        state, _ = compile_once(store_of(*objects).snapshot(), LocalNode(name))
        masters = [entry.backends for key, entry in state.tables["nn_frontend"].items() if not key.slot]
        assert masters == [count]


def test_a_new_zone_compiles_every_service_again() -> None:
    """The same compiler, the same objects, another place."""
    one, slices = service("web", VIP), slice_("web", end(1, zones="a"), end(2, zones="b"))
    compiler = ServiceCompiler(Ids())
    services, all_slices = {one.ref: one}, {slices.ref: slices}
    for zone, expected in (("a", ["10.0.0.1:8080"]), ("b", ["10.0.0.2:8080"]), ("a", ["10.0.0.1:8080"])):
        assert answers(compiler.compile(services, all_slices, Here("node1", zone))) == expected


def _second_reading(found: dict[Any, Candidate], node: str, zone: str, local: bool) -> set[Any]:
    """kube-proxy's rules once more, written down differently: as sets."""
    ready = {target for target, one in found.items() if one.rank == READY}
    if local:
        own = {target for target, one in found.items() if one.node == node}
        return own & ready or own
    without_node = {target for target in ready if not found[target].nodes}
    without_zone = {target for target in ready if not found[target].zones}
    on_node = {target for target in ready if node in found[target].nodes}
    in_zone = {target for target in ready if zone and zone in found[target].zones}
    if on_node and not without_node:
        return on_node
    if in_zone and not without_zone:
        return in_zone
    return ready or set(found)


_NAMES = st.lists(st.sampled_from(["", "a", "b"]).filter(bool), max_size=2, unique=True).map(tuple)
_CANDIDATE = st.builds(Candidate, st.sampled_from([READY, TERMINATING]), st.sampled_from("ab"), _NAMES, _NAMES)
_TARGET = st.tuples(st.sampled_from([ip_address(f"10.0.0.{n}") for n in range(1, 5)]), st.just(80))


@settings(max_examples=2000, deadline=None)
@given(
    st.dictionaries(_TARGET, _CANDIDATE, max_size=4),
    st.sampled_from("ab"),
    st.sampled_from(["", "a", "b"]),
    st.booleans(),
)
def test_the_choice_is_that_of_a_second_reading(found: dict[Any, Candidate], node: str, zone: str, local: bool) -> None:
    chosen = choose(found, 4, Here(node, zone), local=local)
    assert set(chosen.used) == _second_reading(found, node, zone, local)
    assert len(chosen.used) == len(set(chosen.used))
    assert set(chosen.used) | set(chosen.spare) == set(found)
    assert not set(chosen.used) & set(chosen.spare)
    assert chosen.only_elsewhere == (local and bool(found) and not chosen.used)
