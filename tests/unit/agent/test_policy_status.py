"""The condition of ClusterNetworkPolicies: written once by one node, with those of others kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from netpolicy.parse_cluster import read
from netpolicy.types import ClusterPolicy
from nodenet.agent.policy_status import CONDITION, PolicyStatus, verdict, with_condition
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import Object, Target
from nodenet.model import ObjectRef

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

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome:
        assert (target.resource.plural, target.subresource) == ("clusternetworkpolicies", "status")
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
    assert verdict(policy("p", *[broken] * 20))["message"].endswith("; and 490 more")


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
