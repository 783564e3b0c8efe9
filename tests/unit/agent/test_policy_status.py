"""The condition of ClusterNetworkPolicies: written once by one node, with those of others kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from netpolicy.parse_cluster import read
from netpolicy.types import ClusterPolicy
from nodenet.agent import policy_status
from nodenet.agent.policy_status import CONDITION, PolicyStatus, verdict, with_condition
from nodenet.kinds import CLUSTER_NETWORK_POLICY, NODE, Kind
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import Object, Target
from nodenet.model import Node, ObjectRef
from nodenet.pulse import Pulse
from nodenet.store import Op, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ACCEPT = {"action": "Accept", "to": [{"namespaces": {}}]}


def policy(name: str = "p", *egress: Any, generation: int = 1, uid: str = "") -> ClusterPolicy:
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": list(egress) or [ACCEPT]}
    return read({"metadata": {"name": name, "generation": generation, "uid": uid}, "spec": spec}).policy


def served(generation: int = 1, *conditions: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "generation": generation}, "status": {"conditions": list(conditions)}}


class Server:
    """Holds the objects, and counts the writes."""

    def __init__(self, **objects: dict[str, Any]) -> None:
        self.objects = objects
        self.writes: list[str] = []
        self.outcome = Outcome.DONE
        self.reads = 0

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome:
        assert (target.resource.plural, target.subresource) == ("clusternetworkpolicies", "status")
        self.reads += 1
        if self.outcome is not Outcome.DONE:
            return self.outcome
        found = self.objects[target.ref.name]
        wanted = change(found)
        if wanted is not None:
            self.writes.append(target.ref.name)
            self.objects[target.ref.name] = {**found, **wanted}
        return Outcome.DONE


def condition(obj: dict[str, Any]) -> dict[str, Any]:
    (found,) = [c for c in obj["status"]["conditions"] if c["type"] == CONDITION]
    return dict(found)


@pytest.mark.parametrize(
    ("rule", "status", "reason", "part"),
    [
        (ACCEPT, "True", "Accepted", "as it is written"),
        ({"action": "Accept", "to": [{"domainNames": ["a.b"]}]}, "False", "DomainNamesNotEnforced", "accepts nothing"),
        ({"action": "Deny", "to": [{"novelty": 1}]}, "False", "NotReadable", "denies everything"),
    ],
)
def test_the_verdict(rule: Any, status: str, reason: str, part: str) -> None:
    found = verdict(policy("p", rule))
    assert (found["status"], found["reason"]) == (status, reason)
    assert part in found["message"]


def test_a_policy_with_thousands_of_problems_has_a_short_message() -> None:
    broken = {"action": "Accept", "to": [{"novelty": 1}] * 25}
    message = verdict(policy("p", *[broken] * 20))["message"]
    assert message.endswith("; and 490 more")
    assert message.count("unknown field") == 10
    assert len(message) < 2500


def test_values_are_shortened_where_they_are_read() -> None:
    """For policy commands, logs and Events too."""
    selector = {"matchExpressions": [{"key": "a", "operator": "Exists", "values": [f"v{n}" for n in range(20000)]}]}
    (problem,) = policy("p", {"action": "Deny", "to": [{"namespaces": selector}]}).problems
    assert len(problem.message) < 200


# The limit of the CustomResourceDefinition (tests/data/clusternetworkpolicy/crd.yaml).
LONGEST_MESSAGE = 32768


@pytest.mark.parametrize(
    "selector",
    [
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": [f"v{n}" for n in range(20000)]}]},
        {"matchLabels": {"k" * 100_000: 7}},
        {"matchExpressions": [{"key": "a", "operator": "x" * 100_000}]},
        {"n" * 100_000: {}},
        {"matchLabels": {"k\x1b[2J\n": 7}},
    ],
)
def test_what_a_user_writes_at_length_fits(selector: Any) -> None:
    found = verdict(policy("p", *[{"action": "Deny", "to": [{"namespaces": selector}]}] * 25))
    assert found["status"] == "False"
    assert len(found["message"]) <= LONGEST_MESSAGE
    assert "this rule denies everything" in found["message"]
    assert found["message"].isprintable()


def test_the_limit_is_that_of_the_definition() -> None:
    file = Path(__file__).parents[2] / "data" / "clusternetworkpolicy" / "crd.yaml"
    versions = yaml.safe_load(file.read_text())["spec"]["versions"]
    (version,) = [one for one in versions if one["name"] == "v1alpha2"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert status["conditions"]["items"]["properties"]["message"]["maxLength"] == LONGEST_MESSAGE


async def test_what_the_server_rejects_is_not_sent_again() -> None:
    server = Server(p=served())
    server.outcome = Outcome.REJECTED
    agent = PolicyStatus("n1", server)
    for _ in range(3):
        assert await agent.report({ObjectRef("", "p"): policy()}, ["n1"])
    assert server.reads == 1
    assert await agent.report({ObjectRef("", "p"): policy(generation=2)}, ["n1"])
    assert server.reads == 2, "another version may be right"


def test_conditions_of_others_stay_and_the_time_is_that_of_the_last_change() -> None:
    other = {"type": "Ready-In-Zone", "status": "True"}
    wanted = with_condition(policy(generation=3), NOW, served(3, other))
    assert wanted is not None
    first = wanted["status"]["conditions"]
    assert first[0] == other
    assert (first[1]["observedGeneration"], first[1]["lastTransitionTime"]) == (3, "2026-01-02T03:04:05Z")
    assert with_condition(policy(generation=3), NOW, served(3, *first)) is None, "it is right"
    later = datetime(2027, 1, 1, tzinfo=UTC)
    again = with_condition(policy(generation=4), later, served(4, *first))
    assert again is not None
    assert again["status"]["conditions"][1] == {**first[1], "observedGeneration": 4}
    broken = with_condition(policy("p", {"action": "Deny", "to": [{}]}, generation=4), later, served(4, *first))
    assert broken is not None
    assert broken["status"]["conditions"][1]["lastTransitionTime"] == "2027-01-01T00:00:00Z"


def test_a_verdict_goes_to_its_own_version_only() -> None:
    """The object was edited, or deleted and created, after the snapshot from which the verdict is."""
    assert with_condition(policy(generation=3), NOW, served(4)) is None
    assert with_condition(policy(generation=3), NOW, served(3)) is not None
    created_again = {"metadata": {"name": "p", "generation": 1, "uid": "new"}}
    assert with_condition(policy(uid="old"), NOW, created_again) is None
    assert with_condition(policy(uid="new"), NOW, created_again) is not None
    odd = read({"metadata": {"name": "p", "generation": "1", "uid": 7}, "spec": {}}).policy
    assert (odd.generation, odd.uid) == (0, "")


async def test_one_node_writes_each_policy_once() -> None:
    policies = {ObjectRef("", f"p{n}"): policy(f"p{n}") for n in range(20)}
    server = Server(**{ref.name: served() for ref in policies})
    nodes = ["n1", "n2", "n3"]
    agents = [PolicyStatus(node, server) for node in nodes]
    for agent in agents:
        assert await agent.report(policies, nodes)
    assert sorted(server.writes) == sorted(ref.name for ref in policies), "each by one of them"
    for agent in (*agents, *(PolicyStatus(node, server) for node in nodes)):
        assert await agent.report(policies, nodes)
    assert len(server.writes) == 20, "an agent that starts again writes nothing"
    assert all(condition(obj)["status"] == "True" for obj in server.objects.values())


def test_an_edit_that_means_the_same_is_a_change() -> None:
    """domainNames are read, but not part of the rules."""
    names = [policy("p", {"action": "Deny", "to": [{"domainNames": [f"{n}.b"]}]}, generation=n) for n in (1, 2)]
    assert names[0] == replace(names[1], generation=1)
    store = Store()
    assert store.apply(Op.ADDED, names[0])
    assert store.apply(Op.MODIFIED, names[1])
    assert not store.apply(Op.MODIFIED, replace(names[1]))
    again = replace(names[1], uid="new")
    assert store.replace(CLUSTER_NETWORK_POLICY, [names[1]])
    assert store.replace(CLUSTER_NETWORK_POLICY, [again]), "deleted and created while the watch was down"
    assert store.snapshot().cluster_policies[ObjectRef("", "p")].uid == "new"


async def test_its_generation_is_reported_once() -> None:
    ref = ObjectRef("", "p")
    server = Server(p=served())
    agent = PolicyStatus("n1", server)
    assert await agent.report({ref: policy()}, ["n1"])
    server.objects["p"] = {**server.objects["p"], "metadata": {"name": "p", "generation": 2}}
    assert await agent.report({ref: policy(generation=2)}, ["n1"])
    assert condition(server.objects["p"])["observedGeneration"] == 2
    assert server.writes == ["p", "p"]
    reads = server.reads
    assert await agent.report({ref: policy(generation=2)}, ["n1"])
    assert server.reads == reads, "a new list with the same policy costs no request"


class Engine:
    """A second version arrives while the first one comes into force."""

    def __init__(self, *versions: ClusterPolicy) -> None:
        self._versions = list(versions)
        self._pulses = {kind: Pulse() for kind in (CLUSTER_NETWORK_POLICY, NODE)}
        self._nodes = {ObjectRef("", "n1"): Node("n1", ready="True")}

    def next_change(self, kind: Kind) -> asyncio.Event:
        return self._pulses[kind].next()  # type: ignore[index]

    async def in_force(self) -> None:
        found = self._versions.pop(0)
        policies = {ObjectRef("", found.name): found}
        self.current = SimpleNamespace(snapshot=SimpleNamespace(cluster_policies=policies, nodes=self._nodes))
        if self._versions:
            self._pulses[CLUSTER_NETWORK_POLICY].fire()


async def test_a_change_while_it_waits_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_status, "SETTLE_SECONDS", 0)
    broken = policy("p", {"action": "Deny", "to": [{}]})
    server = Server(p=served())
    engine: Any = Engine(policy(), broken)
    keeping = asyncio.create_task(PolicyStatus("n1", server).keep(engine))
    async with asyncio.timeout(5):
        while len(server.writes) < 2:  # noqa: ASYNC110  another task writes
            await asyncio.sleep(0.01)
    keeping.cancel()
    assert condition(server.objects["p"])["status"] == "False"


async def test_another_node_writes_when_the_reporter_is_gone_and_a_failed_write_is_made_again() -> None:
    server = Server(p=served())
    agent = PolicyStatus("n1", server)
    policies = {ObjectRef("", "p"): policy()}
    server.outcome = Outcome.FORBIDDEN
    assert not await agent.report(policies, ["n1"])
    server.outcome = Outcome.DONE
    assert await agent.report(policies, ["n1"])
    assert server.writes == ["p"]
    policies = {ObjectRef("", "p"): policy("p", {"action": "Accept", "to": [{"domainNames": ["a.b"]}]})}
    assert await agent.report(policies, ["n1"])
    assert condition(server.objects["p"])["reason"] == "DomainNamesNotEnforced"
    assert await agent.report({}, ["n1"])
    assert server.writes == ["p", "p"]
