"""A whole connectivity test: build the stage, run checks, remove the stage, also when the run is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodenet.cluster.client import Cluster, RefusedError
from nodenet.cluster.connectivity import objects, run, stage
from nodenet.cluster.connectivity.look import Agents
from nodenet.cluster.connectivity.values import Check, Result


@dataclass(frozen=True, slots=True)
class Report:
    """What is called while a test runs: `say` with a sentence about its progress, `done` with each result."""

    say: Callable[[str], None]
    done: Callable[[Result], None]


async def test(
    cluster: Cluster, options: stage.Options, checks: Sequence[Check], report: Report, *, keep: bool
) -> list[Result]:
    """Run the checks. `keep`: do not delete the namespace at the end."""
    namespace = stage.new_name()
    found: list[Result] = []
    # Until the API has answered, the namespace may exist or not. If it refuses, there is nothing to delete.
    may_exist = True
    try:
        try:
            await cluster.create(objects.namespace(namespace))
        except RefusedError:
            may_exist = False
            raise
        staged = await stage.build(cluster, namespace, options, report.say)
        async for result in run.results(cluster, staged, checks, Agents(cluster).flows):
            found.append(result)
            report.done(result)
    finally:
        if keep and may_exist:
            report.say(f"namespace {namespace} is kept: kubectl delete namespace {namespace}")
        elif may_exist:
            # A second Ctrl-C does not reach this task before it is done.
            await asyncio.shield(asyncio.ensure_future(stage.remove(cluster, namespace, report.say)))
    return found
