"""Runs the checks of a connectivity test one after the other, and judges what the pods report."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nodenet.cluster.client import NETWORK_POLICIES, Cluster
from nodenet.cluster.connectivity import objects
from nodenet.cluster.connectivity import stage as staging
from nodenet.cluster.connectivity.look import MOST_FAILURES, flow_filter, nodes_of
from nodenet.cluster.connectivity.values import (
    Ask,
    Check,
    Failure,
    Family,
    Result,
    Round,
    Skipped,
    Stage,
    State,
    Wanted,
)
from nodenet.cluster.execute import Place, execute
from nodenet.errors import CannotRunError, NodenetError

# Seconds of one connection, until a connection has the wanted result, and how often in a row it must have it.
_TIMEOUT, _SETTLE_SECONDS, _TIMES = 1.5, 20.0, 3
# How long a connection must be refused until that means that nothing serves it.
_REFUSED_SECONDS = 5.0
_EXEC_SECONDS = 90.0
_REFUSED = "refused"
# Called with a failed connection. Returns what the agents saw of it.
Look = Callable[[Stage, Ask], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a pod reports of an Ask. `problem` is empty if it is as wanted."""

    ask: Ask
    result: str
    settled: float
    problem: str


async def results(
    cluster: Cluster, stage: Stage, checks: Iterable[Check], look: Look | None = None
) -> AsyncIterator[Result]:
    """The result of each check, per family, as soon as it is known."""
    for check in checks:
        for family in stage.families if check.per_family else stage.families[:1]:
            yield await _Runner(cluster, stage, look).result(check, family)


class _Runner:
    def __init__(self, cluster: Cluster, stage: Stage, look: Look | None) -> None:
        self._cluster = cluster
        self._stage = stage
        self._look = look

    async def result(self, check: Check, family: Family) -> Result:
        began = time.monotonic()
        shown = family if check.per_family else None

        def made(state: State, **values: Any) -> Result:
            return Result(check.name, shown, state, round(time.monotonic() - began, 2), **values)

        connections, settled = 0, 0.0
        try:
            for part in check.plan(self._stage, family):
                answers = await self._round(part)
                connections += len(answers)
                settled = max([settled, *(answer.settled for answer in answers)])
                failed = [answer for answer in answers if answer.problem]
                if part.refused_means and answers and all(answer.result == _REFUSED for answer in answers):
                    return made(State.SKIPPED, reason=part.refused_means)
                if failed:
                    failures = await self._failures(failed)
                    return made(State.FAILED, connections=connections, settled=settled, failures=failures)
        except Skipped as reason:
            return made(State.SKIPPED, reason=str(reason))
        except NodenetError as error:
            return made(State.FAILED, connections=connections, failures=(Failure(check.about, str(error)),))
        return made(State.PASSED, connections=connections, settled=settled)

    async def _round(self, part: Round) -> list[_Answer]:
        """Make the policies and pods of the round, try its connections, and delete what it made."""
        space = self._stage.namespace
        try:
            for policy in part.policies:
                await self._cluster.create(policy)
            for pod in part.pods:
                await self._cluster.create(pod)
            if part.pods:
                names = [pod["metadata"]["name"] for pod in part.pods]
                await staging.wait_ready(self._cluster, space, names, _SETTLE_SECONDS * 3)
            return await self._ask(part.asks, _REFUSED_SECONDS if part.refused_means else _SETTLE_SECONDS)
        finally:
            # The next round and the next check start without policies. Pods go with the namespace.
            for policy in part.policies:
                await self._cluster.delete(NETWORK_POLICIES, space, policy["metadata"]["name"])

    async def _ask(self, asks: Sequence[Ask], seconds: float) -> list[_Answer]:
        """All connections at the same time: one exec for each client and wanted result."""
        groups: dict[tuple[str, Wanted], list[Ask]] = {}
        for ask in asks:
            groups.setdefault((ask.client, ask.wanted), []).append(ask)
        found = await asyncio.gather(*(self._exec(group, seconds) for group in groups.values()))
        return [answer for part in found for answer in part]

    async def _exec(self, asks: Sequence[Ask], seconds: float) -> list[_Answer]:
        place = Place(self._stage.namespace, asks[0].client, objects.CONTAINER)
        ran = await execute(self._cluster, place, ask_command(asks, seconds), _EXEC_SECONDS)
        lines = ran.stdout.splitlines()
        if ran.status or len(lines) != len(asks):
            text = ran.stderr.decode(errors="replace").strip()[-500:]
            raise CannotRunError(
                f"{place}: peer.py ended with {ran.status}: {text or 'it did not answer for all targets'}"
            )
        return [_judged(ask, json.loads(line)) for ask, line in zip(asks, lines, strict=True)]

    async def _failures(self, answers: Sequence[_Answer]) -> tuple[Failure, ...]:
        found = []
        for number, answer in enumerate(answers):
            flows = await self._look(self._stage, answer.ask) if self._look and number < MOST_FAILURES else ()
            what = f"{answer.ask.client} to {answer.ask.to}"
            found.append(Failure(what, answer.problem, commands(self._stage, answer.ask), tuple(flows)))
        return tuple(found)


def ask_command(asks: Sequence[Ask], seconds: float) -> list[str]:
    """The command in the client's pod for asks with the same client and wanted result."""
    numbers = ["--timeout", f"{_TIMEOUT:g}", "--seconds", f"{seconds:g}", "--times", f"{_TIMES}"]
    return [*objects.PEER, "ask", "--until", asks[0].wanted.value, *numbers, *(ask.target for ask in asks)]


def _judged(ask: Ask, answer: dict[str, Any]) -> _Answer:
    result, settled = str(answer["result"]), answer.get("settled")
    problem = ""
    if settled is None:
        wanted = "no connection" if ask.wanted is Wanted.DENIED else "a connection"
        problem = f"{result} after {answer['tries']} tries; expected {wanted}"
    elif ask.wanted is Wanted.OK and ask.servers and answer["server"] not in ask.servers:
        problem = f"{answer['server']} answered; expected {' or '.join(sorted(ask.servers))}"
    elif ask.wanted is Wanted.OK and ask.source and answer["client"] != ask.source:
        problem = f"the server sees the source {answer['client']}; expected the client's own address {ask.source}"
    return _Answer(ask, result, settled or 0.0, problem)


def commands(stage: Stage, ask: Ask) -> tuple[str, ...]:
    """What a person runs to look further. The pods still exist with --keep."""
    one = " ".join([*objects.PEER, "ask", f"'{ask.target}'" if "?" in ask.target else ask.target])
    found = [f"kubectl exec -n {stage.namespace} {ask.client} -- {one}"]
    options = " ".join(flow_filter(stage, ask))
    found += [f"nodenet observe --last 20 {options}    (on node {node})" for node in nodes_of(stage, ask)]
    if len(ask.servers) == 1:
        [server] = ask.servers
        protocol, port = ask.target[:3], ask.target.rpartition(":")[2]
        ends = f"--from {stage.namespace}/{ask.client} --to {stage.namespace}/{server} --port {port}/{protocol}"
        found.append(f"nodenet policy explain --kubeconfig FILE {ends}")
    return tuple(found)
