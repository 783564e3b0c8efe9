"""Reports in the status of each ClusterNetworkPolicy whether it is in force as it is written.

The answer is the same on every node, so one node writes it, which all choose by the same rule (reporters.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from netpolicy.parse_cluster import NOT_ENFORCED
from netpolicy.types import ClusterPolicy, Problem
from nodenet.agent.reporters import Reporters, reporting_nodes
from nodenet.engine import Engine
from nodenet.kinds import CLUSTER_NETWORK_POLICY, NODE
from nodenet.kube.correlate import About
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import Object, Target
from nodenet.model import ObjectRef
from nodenet.pulse import any_of

CONDITION = "Accepted"
AS_WRITTEN, DOMAIN_NAMES, UNREADABLE = "Accepted", "DomainNamesNotEnforced", "NotReadable"
# Seconds until writes that failed are made again, and until changes that follow each other are reported together.
RETRY_SECONDS = 60.0
SETTLE_SECONDS = 1.0
# The largest number of problems in one message: a policy may have thousands. The server takes 32,768 characters, and a
# label key has no limit there.
_MOST = 10
_LONGEST = 1000

_Policies = Mapping[ObjectRef, ClusterPolicy]


class Writer(Protocol):
    """The method of nodenet.kube.writer.KubeWriter that is used here."""

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome: ...


class PolicyStatus:
    """Reads a policy before it writes, so an agent that starts again writes nothing."""

    def __init__(self, node_name: str, writer: Writer) -> None:
        self._node_name = node_name
        self._writer = writer
        # The objects that this node reported.
        self._reported: dict[ObjectRef, ClusterPolicy] = {}
        self._reporters = Reporters()

    async def keep(self, engine: Engine) -> None:
        """Report until cancelled."""
        while True:
            # First the events: a change that arrives while this waits for an earlier one would be missed.
            events = [engine.next_change(CLUSTER_NETWORK_POLICY), engine.next_change(NODE)]
            await engine.in_force()
            snapshot = engine.current.snapshot
            nodes = reporting_nodes(snapshot.nodes.values())
            if await self.report(snapshot.cluster_policies, nodes):
                await any_of(events, None)
            else:
                await any_of(events, RETRY_SECONDS)
            await asyncio.sleep(SETTLE_SECONDS)

    async def report(self, policies: _Policies, nodes: Iterable[str]) -> bool:
        """Write the conditions that this node has to write. Returns False if a write failed. Another generation, or a
        policy that was deleted and created, is another version, also if it means the same."""
        self._reporters = self._reporters.among(frozenset(nodes))
        ours = {ref: policy for ref, policy in policies.items() if self._is_ours(ref)}
        # What another node reports now is looked at again if it comes back.
        self._reported = {ref: policy for ref, policy in self._reported.items() if ref in ours}
        done = True
        for ref, policy in ours.items():
            if self._reported.get(ref) == policy:
                continue
            target = Target(CLUSTER_NETWORK_POLICY.resource, ref, "status")
            outcome = await self._writer.change(target, partial(with_condition, policy, datetime.now(UTC)))
            # The server would reject the same condition again; the writer has logged why.
            if outcome in (Outcome.DONE, Outcome.GONE, Outcome.REJECTED):
                self._reported[ref] = policy
            else:
                done = False
        return done

    def _is_ours(self, ref: ObjectRef) -> bool:
        resource = CLUSTER_NETWORK_POLICY.resource
        return self._reporters.of(About(resource.api_version, resource.kind, "", ref.name)) == self._node_name


def with_condition(policy: ClusterPolicy, now: datetime, obj: Object) -> Object | None:
    """The change that sets the condition of an object; None if it is right, or if the object is another version than
    `policy`: this version's verdict must not get that one's generation, and the watch brings that one. Conditions of
    others are kept. Pure."""
    metadata = obj["metadata"]
    if (metadata.get("generation", 0), metadata.get("uid", "")) != (policy.generation, policy.uid):
        return None
    conditions: list[Any] = list((obj.get("status") or {}).get("conditions") or [])
    before = next((c for c in conditions if c.get("type") == CONDITION), None)
    wanted = {"type": CONDITION, **verdict(policy), "observedGeneration": policy.generation}
    if before is not None and {key: before.get(key) for key in wanted} == wanted:
        return None
    same = before is not None and before.get("status") == wanted["status"]
    time = before["lastTransitionTime"] if same and before else now.strftime("%Y-%m-%dT%H:%M:%SZ")
    others = [c for c in conditions if c.get("type") != CONDITION]
    return {"status": {"conditions": [*others, {**wanted, "lastTransitionTime": time}]}}


def verdict(policy: ClusterPolicy) -> dict[str, str]:
    """Status, reason and message of the condition. Pure."""
    if not policy.problems:
        return {"status": "True", "reason": AS_WRITTEN, "message": "nodenet enforces the policy as it is written"}
    reasons = {DOMAIN_NAMES if problem.message == NOT_ENFORCED else UNREADABLE for problem in policy.problems}
    texts = [_shown(problem) for problem in policy.problems[:_MOST]]
    number = len(policy.problems)
    more = f"; and {number - _MOST} more" if number > _MOST else ""
    return {"status": "False", "reason": max(reasons), "message": "; ".join(texts) + more}


def _shown(problem: Problem) -> str:
    """The problem with its effect, without what users could write at any length, or for a terminal."""
    return str(Problem(_short(problem.field), _short(problem.message), problem.effect))


def _short(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return "".join(letter if letter.isprintable() else " " for letter in cut)
