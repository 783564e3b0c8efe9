"""Any change of policies, labels and pods comes into force with one write, for all programs and at any crash.

The model of the datapath answers after every single write: programs that start now, and programs that read the previous
generation and still run. Each gets exactly the answers of the old state or of the new one, never a mixture.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodenet.compile.ids import Ids
from nodenet.model import Direction
from nodenet.testing import Crashed
from tests.unit.netpolicy.datapath import Packet
from tests.unit.netpolicy.node import Node, Question, Tables, answers_of
from tests.unit.netpolicy.strategies import OUTSIDE, labels, namespaces, pods, policies
from tests.unit.netpolicy.world import compiled, tables_of

Obj = dict[str, Any]
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def packets(*clusters: list[Obj]) -> list[Question]:
    """What each pod's own two hooks are asked, for the pods of all clusters."""
    ips = sorted({ip_address(pod["ip"]) for cluster in clusters for pod in cluster}, key=lambda ip: (ip.version, ip))
    ends = [*ips, *map(ip_address, OUTSIDE)]
    found: list[Question] = []
    for pod in ips:
        for other in ends:
            if pod == other or pod.version != other.version:
                continue
            for protocol, port in (("TCP", 80), ("UDP", 81), ("TCP", 8080)):
                found.append((Direction.EGRESS, Packet(pod, other, protocol, port)))
                found.append((Direction.INGRESS, Packet(other, pod, protocol, port)))
    return found


@st.composite
def states(draw: st.DrawFn, number: int = 2) -> tuple[list[Tables], list[Question]]:
    """The tables of several states of one cluster: labels of namespaces and pods, and policies differ, and
    pods come and go."""
    ids = Ids()
    base = [{**pod, "number": number} for number, pod in enumerate(draw(pods()), 1)]
    clusters: list[list[Obj]] = []
    found: list[Tables] = []
    for place in range(number):
        cluster = base
        if place:
            cluster = [{**pod, "labels": draw(labels())} if draw(st.booleans()) else pod for pod in base]
            cluster = cluster[draw(st.integers(0, 1)) :] or cluster
        clusters.append(cluster)
        found.append(tables_of(cluster, compiled(cluster, draw(namespaces()), draw(policies()), ids)))
    return found, packets(*clusters)


@settings(max_examples=80, deadline=None, suppress_health_check=_SLOW)
@given(states(3))
def test_no_packet_meets_a_mixture_at_any_write(drawn: tuple[list[Tables], list[Question]]) -> None:
    found, asked = drawn
    node = Node(asked)
    for tables in found:
        switches = node.switches
        outcome = node.change(tables, answers_of(tables, asked))
        assert not outcome.errors
        if node.switches == switches:
            # At most one write, which is atomic on its own.
            assert sum(outcome.writes.values()) <= 1 + sum(outcome.writes[n] for n in ("nn_state",))
            node.running[node.datapath.generation] = node.next
        else:
            assert node.switches == switches + 1
        node.check("after the change")
        assert {name: dict(node.maps.held[name]) for name in tables} == {n: dict(t) for n, t in tables.items()}
    # What is left of the changes goes away, and nothing else.
    node.grace.wait()
    node.check("after the deletes")
    assert all(len(list(node.inner[name].items())) == len(table) for name, table in found[-1].items())


@settings(max_examples=120, deadline=None, suppress_health_check=_SLOW)
@given(states(3), st.integers(0, 60), st.booleans(), st.booleans())
def test_a_crash_at_any_write_leaves_one_state_whole(
    drawn: tuple[list[Tables], list[Question]], at: int, made: bool, waited: bool
) -> None:
    """The agent dies at a write of the second change. The next one makes the third; the programs of the time before
    the crash may still run when it starts."""
    (old, new, third), asked = drawn
    node = Node(asked)
    settled(node, old)
    node.fault.at, node.fault.crash, node.fault.made = node.fault.writes + at, True, made
    try:
        node.change(new, answers_of(new, asked))
        if waited:
            node.grace.wait()
        node.running[node.datapath.generation] = answers_of(new, asked)
    except Crashed:
        node.check("after the crash")
    node.start()
    settled(node, third)
    assert {name: dict(node.maps.held[name]) for name in third} == {n: dict(t) for n, t in third.items()}


@settings(max_examples=80, deadline=None, suppress_health_check=_SLOW)
@given(states(3), st.integers(0, 60), st.booleans())
def test_a_failed_write_is_repaired_without_a_restart(
    drawn: tuple[list[Tables], list[Question]], at: int, made: bool
) -> None:
    (old, new, third), asked = drawn
    node = Node(asked)
    settled(node, old)
    node.fault.at, node.fault.made = node.fault.writes + at, made
    outcome = node.change(new, answers_of(new, asked))
    if not outcome.errors:
        node.running[node.datapath.generation] = answers_of(new, asked)
    node.check("after the failure")
    settled(node, third)


@settings(max_examples=30, deadline=None, suppress_health_check=_SLOW)
@given(states(3), st.sampled_from([(1 << 30) - 2, (1 << 31) - 2, (1 << 32) - 2]))
def test_generations_wrap(drawn: tuple[list[Tables], list[Question]], generation: int) -> None:
    found, asked = drawn
    node = Node(asked, generation)
    for tables in found:
        settled(node, tables)


def settled(node: Node, tables: Tables) -> None:
    """Make a change without a fault, to its end."""
    node.fault.at = 1 << 30
    outcome = node.change(tables, answers_of(tables, node.asked))
    if outcome.errors:
        # Deletes of the previous change failed.
        outcome = node.change(tables, answers_of(tables, node.asked))
    assert not outcome.errors
    node.running[node.datapath.generation] = node.next
    node.grace.wait()
    node.check("when it is settled")
    assert all(len(list(node.inner[name].items())) == len(table) for name, table in tables.items())
