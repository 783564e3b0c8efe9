"""Events about NetworkPolicies whose rules have no room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from netpolicy.types import PolicyRef
from nodenet.agent.notices import Notices, PolicyNotices
from nodenet.compile.shares import LeftOut
from nodenet.kube.config import ClusterAccess
from nodenet.kube.correlate import Notice
from nodenet.kube.writer import KubeWriter
from nodenet.lab.apiserver.access import Access, reader
from nodenet.lab.apiserver.server import ApiServer, serve

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
