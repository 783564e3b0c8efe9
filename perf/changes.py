"""Measures the agent's CPU time for one change of a cluster, from the delta to the last write, including flow names.

    python -m perf.changes [--pods 10000 50000] [--policies 1000] [--tiers 20] [-o json]

It builds clusters of several sizes in one process and makes the same changes in each. Nothing is written to the kernel.
The garbage collector works as in the agent.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import click

from netpolicy.types import (
    Action,
    ClusterPolicy,
    Direction,
    IPBlock,
    NetworkPolicy,
    Operator,
    Peer,
    PortRule,
    Protocol,
    Requirement,
    Rule,
    Selector,
    Tier,
)
from nodenet.agent.memory import collect_rarely
from nodenet.compile import LocalNode, compile_once
from nodenet.engine import Engine
from nodenet.model import Endpoint, Namespace, Node, ObjectRef, Pod
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.plan import plan_services
from nodenet.reconcile.switch import plan_policy
from nodenet.store import Delta, Op, listings
from perf.nowhere import nowhere

NODE = "node1"
NAMESPACES = 50
LABEL_SETS = 500
LOCAL_PODS = 100
TEAMS = 5
_FIRST_ADDRESS = int(IPv4Address("10.0.0.0"))
_SEED = 1
# How often each change is made. The median counts.
_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Row:
    """CPU milliseconds of one kind of change, and its number of writes."""

    pods: int
    change: str
    median_ms: float
    worst_ms: float
    writes: int


def pod(number: int, label_set: int | None = None, node: str = "") -> Pod:
    """Pod `number` with one of LABEL_SETS label sets. The first LOCAL_PODS pods run on this node."""
    app = (number if label_set is None else label_set) % LABEL_SETS
    name = f"p{number}"
    return Pod(
        ObjectRef(f"ns{app % NAMESPACES}", name),
        f"uid-{name}",
        {"app": f"a{app // NAMESPACES}", "tier": "front" if app % 2 else "back"},
        node or (NODE if number < LOCAL_PODS else f"node{2 + number % 100}"),
        (IPv4Address(_FIRST_ADDRESS + 256 + number),),
        phase="Running",
    )


def namespace(number: int, team: int) -> Namespace:
    return Namespace(f"ns{number}", {"team": f"t{team % TEAMS}", "kubernetes.io/metadata.name": f"ns{number}"})


def policy(number: int, port: int = 8080) -> NetworkPolicy:
    """Ingress to one application from the namespaces of a team and from front pods of its own namespace, on a few
    ports."""
    space, app = number % NAMESPACES, number // NAMESPACES % (LABEL_SETS // NAMESPACES)
    team = Peer(namespaces=_equals("team", f"t{(number + number // LABEL_SETS) % TEAMS}"))
    near = Peer(pods=_equals("tier", "front"))
    ports = tuple(PortRule(Protocol.TCP, port + step) for step in range(6))
    rules = (Rule((team,), ports), Rule((near,), (PortRule(Protocol.UDP, 53),)))
    selector = _equals("app", f"a{app}")
    return NetworkPolicy(f"ns{space}", f"np{number}", selector, frozenset({Direction.INGRESS}), rules)


def cluster_policy(number: int, port: int = 8080) -> ClusterPolicy:
    """The pods of one team: another team is denied on a port, its own passes, a third one is accepted on a port."""
    teams = (number, number + 1 + number // TEAMS, number + 2 + number // TEAMS)
    team, other, third = (Peer(namespaces=_equals("team", f"t{n % TEAMS}")) for n in teams)
    ingress = (
        Rule((other,), (PortRule(Protocol.TCP, port),), Action.DENY, "other team"),
        Rule((team,), (), Action.PASS, "itself"),
        Rule((third,), (PortRule(Protocol.TCP, port + 1),), Action.ACCEPT, "third team"),
    )
    networks = Rule((Peer(block=IPBlock(IPv4Network("169.254.169.254/32"))),), (), Action.DENY, "metadata")
    tier = Tier.BASELINE if number % 4 == 3 else Tier.ADMIN
    return ClusterPolicy(f"wide{number}", tier, number, team, ingress, (networks,))


def _equals(key: str, value: str) -> Selector:
    return Selector((Requirement(key, Operator.IN, (value,)),))


def build(pods: int, policies: int, tiers: int = 0) -> Engine:
    """An engine with a cluster of that size, before its first compilation."""
    everyone = [pod(number) for number in range(pods)]
    engine = Engine(LocalNode(NODE), nowhere(), NoPrograms())
    engine.feed(
        *listings(
            [
                *everyone,
                *(namespace(number, number) for number in range(NAMESPACES)),
                *(Node(f"node{n}", (IPv4Address(_FIRST_ADDRESS + n),), ()) for n in range(1, 102)),
                *(policy(number) for number in range(policies)),
                *(cluster_policy(number) for number in range(tiers)),
                *(_endpoint(number, p) for number, p in enumerate(everyone[:LOCAL_PODS], 1)),
            ]
        )
    )
    return engine


def _endpoint(number: int, of: Pod) -> Endpoint:
    mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
    return Endpoint(
        number, of.uid, "eth0", f"/run/netns/{of.uid}", f"veth{number}", number, mac, of.ips, of.ref, of.uid
    )


def changes(engine: Engine, pods: int) -> Iterator[tuple[str, Callable[[int], Delta]]]:
    """Yield (name, function that returns the change of the nth round)."""
    chance = random.Random(_SEED)
    far = range(LOCAL_PODS, min(pods, 4000))
    yield "a further pod, labels known", lambda n: Delta(Op.ADDED, pod(1_000_000 + n, n))
    yield "a pod goes", lambda n: Delta(Op.DELETED, pod(1_000_000 + n, n))
    yield "a pod gets another known label set", lambda n: _relabelled(chance.choice(far), n)
    yield "a pod's status changes", lambda n: _touched(engine, chance.choice(far))
    yield "a policy changes a port", lambda n: Delta(Op.MODIFIED, policy(n * 7, 9000 + n))
    yield "a further policy", lambda n: Delta(Op.ADDED, replace(policy(n * 7 + 3), name=f"more{n}"))
    yield "a policy goes", lambda n: Delta(Op.DELETED, replace(policy(n * 7 + 3), name=f"more{n}"))
    if engine.snapshot().cluster_policies:
        yield "a ClusterNetworkPolicy changes a port", lambda n: Delta(Op.MODIFIED, cluster_policy(n, 9000 + n))
        yield "a further ClusterNetworkPolicy", lambda n: Delta(Op.ADDED, cluster_policy(500 + n))
        yield "a ClusterNetworkPolicy goes", lambda n: Delta(Op.DELETED, cluster_policy(500 + n))
    yield "a namespace changes its team", lambda n: Delta(Op.MODIFIED, namespace(n, n + 1))
    yield "nothing that a map shows", lambda n: Delta(Op.MODIFIED, Namespace(f"ns{n}", _noise(n)))


def _relabelled(number: int, turn: int) -> Delta:
    old = pod(number)
    other = pod(number, (number + NAMESPACES * (1 + turn % 3)) % LABEL_SETS)
    return Delta(Op.MODIFIED, replace(other, ref=old.ref))


def _touched(engine: Engine, number: int) -> Delta:
    found = engine.snapshot().pods[pod(number).ref]
    return Delta(Op.MODIFIED, replace(found, phase="Pending" if found.phase == "Running" else "Running"))


def _noise(number: int) -> Mapping[str, str]:
    labels = namespace(number, number + 1).labels
    return {**labels, "noise": "1"}


def measure(pods: int, policies: int, tiers: int = 0) -> list[Row]:
    """Measure every change in a cluster of that size. The first rows are the compilation from nothing: without and with
    the names for flows and the writes."""
    engine = build(pods, policies, tiers)
    gc.collect()
    started = time.process_time()
    desired = compile_once(engine.snapshot(), LocalNode(NODE))[0].tables
    policy_change = plan_policy(desired, {})
    planned = len(plan_services(desired, {})) + (len(policy_change.entries) if policy_change else 0)
    rows = [_row(pods, "from nothing, compile and plan only", [time.process_time() - started], [planned])]
    gc.collect()
    started = time.process_time()
    writes = engine.run_once().writes.total()
    rows.append(_row(pods, "from nothing", [time.process_time() - started], [writes]))
    for name, change in changes(engine, pods):
        took, made = [], []
        for turn in range(_ROUNDS):
            started = time.process_time()
            engine.feed(change(turn))
            made.append(engine.run_once().writes.total())
            took.append(time.process_time() - started)
        rows.append(_row(pods, name, took, made))
    return rows


def _row(pods: int, name: str, took: list[float], writes: list[int]) -> Row:
    ms = [1000 * seconds for seconds in took]
    return Row(pods, name, round(statistics.median(ms), 2), round(max(ms), 2), int(statistics.median(writes)))


@click.command()
@click.option("--pods", "sizes", type=click.IntRange(1000), multiple=True, default=(10_000, 50_000), show_default=True)
@click.option("--policies", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--tiers", type=click.IntRange(0), default=20, show_default=True, help="ClusterNetworkPolicies.")
@click.option("-o", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(sizes: tuple[int, ...], policies: int, tiers: int, output: str) -> None:
    """CPU milliseconds of one change, from the delta to its last write."""
    collect_rarely()
    rows: list[Any] = [row for size in sizes for row in measure(size, policies, tiers)]
    if output == "json":
        click.echo(json.dumps([{key: getattr(row, key) for key in Row.__slots__} for row in rows]))
        return
    click.echo(f"{'pods':>7}  {'change':<38}{'median ms':>10}{'worst ms':>10}{'writes':>8}")
    for row in rows:
        click.echo(f"{row.pods:>7}  {row.change:<38}{row.median_ms:>10}{row.worst_ms:>10}{row.writes:>8}")


if __name__ == "__main__":
    main()
