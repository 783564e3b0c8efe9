"""The agent is told of each verb, for its metrics."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.netns.cni.test_cni_agent import Agent, scenario

pytestmark = pytest.mark.kernel


def test_each_verb_is_counted(world: Any) -> None:
    counted: list[tuple[str, bool]] = []
    three = threading.Event()

    def done(verb: str, seconds: float, failed: bool) -> None:
        assert seconds > 0
        counted.append((verb, failed))
        if len(counted) == 3:
            three.set()

    async def body(agent: Agent) -> None:
        pod = world.pod()
        await agent.call("ADD", "c1", pod)
        await agent.call("ADD", "c1", pod)
        await agent.call("DEL", "c1", pod)
        # Each is counted after its answer.
        assert await asyncio.to_thread(three.wait, 10)
        assert counted == [("ADD", False), ("ADD", True), ("DEL", False)]

    scenario(world, body, done=done)
