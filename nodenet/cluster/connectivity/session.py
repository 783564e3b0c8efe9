"""A whole connectivity test: build the stage, run checks, remove the stage, also when the run is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodenet.cluster.client import Cluster
from nodenet.cluster.connectivity import run, stage
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
    try:
        staged = await stage.build(cluster, namespace, options, report.say)
        async for result in run.results(cluster, staged, checks):
            found.append(result)
            report.done(result)
    finally:
        if keep:
            report.say(f"namespace {namespace} is kept: kubectl delete namespace {namespace}")
        else:
            # A second Ctrl-C does not reach this task before it is done.
            await asyncio.shield(asyncio.ensure_future(stage.remove(cluster, namespace, report.say)))
    return found
