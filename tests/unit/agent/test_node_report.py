"""Taint and condition of this node: written once, only when needed, and again for a Node that is created again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from nodenet import kinds
from nodenet.agent.node_report import CONDITION, REASON, TAINT, NodeReport, condition, without_taint
from nodenet.decode import schema
from nodenet.decode.build import node as build
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import Object, PatchType, Target
from nodenet.model import Node, ObjectRef

TAINTED = Node("n1", taints=frozenset({TAINT, "other"}), network_unavailable="True")
WELL = Node("n1", taints=frozenset({"other"}), network_unavailable="False")


class Writer:
    def __init__(self) -> None:
        self.writes: list[str] = []
        self.outcome = Outcome.DONE

    async def patch(self, target: Target, body: Object, kind: PatchType) -> Outcome:
        assert kind is PatchType.STRATEGIC
        assert body["status"]["conditions"][0]["status"] == "False"
        self.writes.append(str(target))
        return self.outcome

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome:
        self.writes.append(str(target))
        return self.outcome


class Scene:
    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.event = asyncio.Event()
        self.writer = Writer()
        self.report = NodeReport(
            "n1", self.writer, lambda: self.node, lambda: self.event, retry_seconds=0.01, settle_seconds=0
        )

    def becomes(self, node: Node | None) -> None:
        self.node = node
        event, self.event = self.event, asyncio.Event()
        event.set()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nothing_is_written_before_the_agent_is_ready_and_only_what_is_needed_after() -> None:
    scene, ready = Scene(TAINTED), asyncio.Event()
    task = asyncio.create_task(scene.report.keep(ready))
    await settle()
    assert scene.writer.writes == []
    ready.set()
    await settle()
    assert scene.writer.writes == ["nodes n1", "nodes/status n1"]
    scene.becomes(WELL)
    await settle()
    scene.becomes(None)
    await settle()
    assert len(scene.writer.writes) == 2
    # Registered again.
    scene.becomes(TAINTED)
    await settle()
    assert len(scene.writer.writes) == 4
    task.cancel()


async def test_an_agent_that_starts_again_writes_nothing() -> None:
    scene = Scene(WELL)
    assert await scene.report.report(WELL)
    assert scene.writer.writes == []


async def test_a_write_that_failed_is_made_again_without_a_change() -> None:
    scene, ready = Scene(Node("n1")), asyncio.Event()
    scene.writer.outcome = Outcome.FORBIDDEN
    ready.set()
    task = asyncio.create_task(scene.report.keep(ready))
    async with asyncio.timeout(5):
        while len(scene.writer.writes) < 3:  # noqa: ASYNC110  the clock of the retry is real
            await asyncio.sleep(0.005)
    task.cancel()


@pytest.mark.parametrize(
    ("taints", "kept"),
    [([TAINT], None), ([TAINT, "a", "b"], ["a", "b"]), (["a"], "unchanged"), ([], "unchanged"), (None, "unchanged")],
)
def test_only_our_taint_goes(taints: list[str] | None, kept: Any) -> None:
    spec = {} if taints is None else {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
    change = without_taint({"spec": spec})
    if kept == "unchanged":
        assert change is None
    else:
        wanted = kept and [{"key": key, "effect": "NoSchedule"} for key in kept]
        assert change == {"spec": {"taints": wanted}}


def test_the_condition_is_read_back() -> None:
    body = {
        "metadata": {"name": "n1"},
        "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}, {"key": "b"}]},
        **condition(datetime.now(UTC)),
    }
    assert body["status"]["conditions"][0]["type"] == CONDITION
    found = build(ObjectRef("", "n1"), msgspec.convert(body, schema.Node), [])
    assert (found.taints, found.network_unavailable) == ({TAINT, "b"}, "False")
    assert (found.network_reason, found.ready) == (REASON, "")
    body["status"]["conditions"].append({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"})
    assert build(ObjectRef("", "n1"), msgspec.convert(body, schema.Node), []).ready == "Unknown"
    bare = build(ObjectRef("", "n1"), msgspec.convert({"metadata": {"name": "n1"}}, schema.Node), [])
    assert (bare.taints, bare.network_unavailable) == (frozenset(), "")
    assert kinds.NODE.resource.path("", "n1", "status") == "/api/v1/nodes/n1/status"
