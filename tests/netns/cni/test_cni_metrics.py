"""The agent is told of each verb, for its metrics."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.cni.test_cni_agent import Agent, scenario

pytestmark = pytest.mark.kernel


def test_each_verb_is_counted(world: Any) -> None:
    counted: list[tuple[str, bool]] = []

    async def body(agent: Agent) -> None:
        pod = world.pod()
        await agent.call("ADD", "c1", pod)
        await agent.call("ADD", "c1", pod)
        await agent.call("DEL", "c1", pod)
        assert counted == [("ADD", False), ("ADD", True), ("DEL", False)]

    scenario(world, body, done=lambda verb, seconds, failed: counted.append((verb, failed)) if seconds > 0 else None)
