"""Events about objects that are not enforced or not served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from netpolicy.types import PolicyRef
from nodenet.agent import reporters
from nodenet.agent.node_report import REASON
from nodenet.agent.notices import MOST_AT_ONCE, Notices, ObjectNotices, PolicyNotices, objects_with_problems
from nodenet.agent.reporters import Reporters, reporting_nodes
from nodenet.compile.shares import LeftOut
from nodenet.compile.state import ServiceWarning
from nodenet.engine import Compiled
from nodenet.kinds import NETWORK_POLICY, POD
from nodenet.kube.config import ClusterAccess
from nodenet.kube.correlate import About, Notice
from nodenet.kube.health import KindStats
from nodenet.kube.writer import KubeWriter
from nodenet.lab.apiserver.access import Access, reader
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.model import Node, ObjectRef
from nodenet.store import Snapshot

BIG, HUGE = (LeftOut(PolicyRef("evil", name), "entries of nn_policy", 9000, 40, 1) for name in ("big", "huge"))


class Recorded:
    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.policies = PolicyNotices(self.notices.append)

    def update(self, *left_out: LeftOut, exists: Sequence[PolicyRef] = (BIG.policy, HUGE.policy)) -> list[str]:
        self.policies.update(left_out, exists.__contains__)
        told = [f"{one.type} {one.reason} {one.about.namespace}/{one.about.name}" for one in self.notices]
        self.notices.clear()
        return told


def test_one_notice_for_each_change() -> None:
    recorded = Recorded()
    assert recorded.update() == []
    assert recorded.update(BIG) == ["Warning RulesLeftOut evil/big"]
    assert recorded.update(replace(BIG, limit=41)) == []
    assert recorded.update(BIG, HUGE) == ["Warning RulesLeftOut evil/huge"]
    assert recorded.update(HUGE) == ["Normal RulesInForce evil/big"]
    # Deleted: there is no object to report about.
    assert recorded.update(exists=()) == []
    assert recorded.update(HUGE) == ["Warning RulesLeftOut evil/huge"]


async def events_of(api: ApiServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.client.list("Event", "evil")).items
    return found


@pytest.mark.parametrize("may", [True, False])
async def test_over_the_api(may: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Without the right to create Events: one line in the log, and a sentence in the status."""
    caplog.set_level(logging.WARNING)
    agent = reader("agent", ["Node"], ["Event"], ["Event"] if may else ())
    api = ApiServer(access=Access({"t": agent}))
    await api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "evil"}})
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeWriter(ClusterAccess(server.urls[0], token="t")) as writer,
    ):
        notices = Notices(writer, "node1")
        task = asyncio.create_task(notices.run())
        notices.policies.update((BIG,), bool)
        notices.policies.update((BIG, HUGE), bool)
        notices.policies.update((BIG, HUGE), bool)
        await asyncio.wait_for(notices.sent(), 20)
        task.cancel()
    found = {one["involvedObject"]["name"]: one for one in await events_of(api)}
    if not may:
        assert found == {}
        assert len(caplog.records) == 1
        (problem,) = writer.problems()
        assert problem.startswith("no permission to create events")
        return
    assert writer.problems() == []
    assert sorted(found) == ["big", "huge"]
    event = found["big"]
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "RulesLeftOut", 1)
    assert event["message"] == str(BIG)
    assert event["source"] == {"component": "nodenet-agent", "host": "node1"}
    assert event["involvedObject"]["kind"] == "NetworkPolicy"


PARTS = ("spec.ingress[0].ports[0].port: expected a port",)
WEB = About("v1", "Service", "shop", "web")
NODES = [f"node{number}" for number in range(100)]


def test_objects_with_their_parts_and_uids() -> None:
    stats = {POD: KindStats(), NETWORK_POLICY: KindStats()}
    stats[NETWORK_POLICY].note(NETWORK_POLICY, ObjectRef("shop", "deny"), PARTS, "uid-1")
    warnings = [ServiceWarning(ObjectRef("shop", "web"), text) for text in ("first", "second")]
    assert objects_with_problems(stats, warnings) == {
        About("networking.k8s.io/v1", "NetworkPolicy", "shop", "deny", "uid-1"): (
            "NotReadable",
            f"could not be read: {PARTS[0]}",
        ),
        WEB: ("NotServed", "first; second"),
    }
    pod = ServiceWarning(ObjectRef("shop", "web"), "hostPort 80: taken", "Pod")
    assert objects_with_problems({}, [*warnings, pod]) == {
        WEB: ("NotServed", "first; second"),
        About("v1", "Pod", "shop", "web"): ("NotServed", "hostPort 80: taken"),
    }
    stats[NETWORK_POLICY].note(NETWORK_POLICY, ObjectRef("shop", "deny"), ())
    assert objects_with_problems(stats, []) == {}
    assert stats[NETWORK_POLICY].uids == {}


def test_one_node_reports_and_it_is_the_same_for_all() -> None:
    recorded: dict[str, list[Notice]] = {node: [] for node in NODES}
    agents = {node: ObjectNotices(node, recorded[node].append) for node in NODES}
    for agent in agents.values():
        agent.update({WEB: ("NotServed", "x")}, NODES)
        # What was reported is not repeated.
        agent.update({WEB: ("NotServed", "x")}, NODES)
    (chosen,) = [node for node in NODES if recorded[node]]
    assert recorded[chosen] == [Notice(WEB, "Warning", "NotServed", "x")]
    assert chosen == Reporters(list(reversed(NODES))).of(WEB)
    agents[chosen].update({WEB: ("NotServed", "y")}, NODES)
    agents[chosen].update({}, NODES)
    agents[chosen].update({WEB: ("NotServed", "y")}, NODES)
    assert [one.message for one in recorded[chosen]] == ["x", "y", "y"]


def test_a_nodes_own_pods_are_reported_by_that_node() -> None:
    """No other node knows which of its hostPorts is not served."""
    about = About("v1", "Pod", "shop", "web")
    for node in NODES[:5]:
        recorded: list[Notice] = []
        agent = ObjectNotices(node, recorded.append)
        agent.update({about: ("NotServed", "x")}, NODES)
        assert recorded == [Notice(about, "Warning", "NotServed", "x")]


def test_reports_are_spread_and_few_move_when_a_node_leaves() -> None:
    objects = [About("v1", "Service", "shop", f"s{number}") for number in range(1000)]
    before = {one: Reporters(NODES).of(one) for one in objects}
    assert len(set(before.values())) > 90
    after = {one: Reporters(NODES[1:]).of(one) for one in objects}
    assert [one for one in objects if before[one] != after[one]] == [one for one in objects if before[one] == "node0"]
    assert Reporters().of(WEB) == ""


READY: dict[str, Any] = {"ready": "True", "labels": {"kubernetes.io/os": "linux"}}
OURS = {**READY, "network_unavailable": "False", "network_reason": REASON}
WINDOWS = Node("windows", ready="True", labels={"kubernetes.io/os": "windows"})
VIRTUAL = Node("virtual", ready="True", labels={"kubernetes.io/os": "linux", "type": "virtual-kubelet"})
NO_AGENT = (WINDOWS, VIRTUAL, Node("new"), Node("off", **{**OURS, "ready": "Unknown"}))


def test_a_node_without_an_agent_does_not_report() -> None:
    nodes = [*NO_AGENT, Node("a", **OURS), Node("b", **{**OURS, "labels": {}}), Node("c", **READY)]
    assert reporting_nodes(nodes) == {"a", "b"}
    # A cloud provider has set the condition on all Nodes.
    cloud = {**READY, "network_unavailable": "False", "network_reason": "RouteCreated"}
    assert reporting_nodes([*NO_AGENT, Node("a", **cloud), Node("b", **READY), Node("c", ready="True")]) == set("abc")
    assert reporting_nodes(NO_AGENT) == frozenset()


def test_known_objects_cost_no_hash_and_the_nodes_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every agent looks at every object with a problem every 5 s."""
    agent = ObjectNotices("node1", [].append)
    found = {About("v1", "Service", "shop", f"s{number}"): ("NotServed", "x") for number in range(1000)}
    for _ in range(20):
        agent.update(found, NODES)
    built = Reporters(NODES)
    assert built.among(set(NODES)) is built
    assert built.among(NODES[1:]) is not built

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(reporters, "blake2b", fail)
    agent.update(found, NODES)
    # Nor without objects, when the set of nodes changes.
    agent.update({}, NODES[1:])


def test_no_notice_is_lost_and_none_waits_for_ever() -> None:
    """One node reports about all. Some objects change in every round."""
    notices: list[Notice] = []
    agent = ObjectNotices("node1", notices.append)
    objects = [About("v1", "Service", "shop", f"s{number}") for number in range(30)]
    sizes = []
    for turn in range(20):
        found = {one: ("NotServed", f"{turn}" if number < 10 else "x") for number, one in enumerate(objects)}
        before = len(notices)
        agent.update(found, ["node1"])
        sizes.append(len(notices) - before)
    assert {one.about for one in notices} == set(objects)
    assert max(sizes) == MOST_AT_ONCE
    steady = [one for one in notices if one.message == "x"]
    assert len(steady) == 20, "each once"
    # What is repaired before its turn is not reported.
    agent = ObjectNotices("node1", notices.append)
    notices.clear()
    agent.update(dict.fromkeys(objects, ("NotServed", "x")), ["node1"])
    agent.update({}, ["node1"])
    agent.update({}, ["node1"])
    assert len(notices) == MOST_AT_ONCE


class Synced:
    """An engine after its first sync, on the only node."""

    def __init__(self) -> None:
        nodes = {ObjectRef("", "node1"): Node("node1", ready="True")}
        self.current = Compiled(Snapshot(nodes=MappingProxyType(nodes)))

    async def in_force(self) -> None: ...


async def test_an_object_that_cannot_be_read_gets_its_event() -> None:
    api = ApiServer()
    await api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "evil"}})
    stats = {NETWORK_POLICY: KindStats()}
    stats[NETWORK_POLICY].note(NETWORK_POLICY, ObjectRef("evil", "odd"), PARTS, "uid-1")
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeWriter(ClusterAccess(server.urls[0])) as writer,
        asyncio.timeout(10),
    ):
        notices = Notices(writer, "node1")
        tasks = [
            asyncio.create_task(notices.run()),
            asyncio.create_task(notices.watch_objects(stats, Synced())),  # type: ignore[arg-type]
        ]
        while not (found := await events_of(api)):  # noqa: ASYNC110  another task sends it
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
    (event,) = found
    assert (event["reason"], event["type"], event["involvedObject"]["uid"]) == ("NotReadable", "Warning", "uid-1")
    assert PARTS[0] in event["message"]
