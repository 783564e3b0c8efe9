"""The order in which an agent ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from nodenet.agent import main


async def test_pods_that_are_being_wired_end_before_what_they_wait_for() -> None:
    """An ADD waits for the reconcile loop, which is part of the agent's work."""
    ended: list[str] = []
    stop = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async def close() -> None:
        await asyncio.sleep(0.01)
        ended.append("calls")

    agent: Any = SimpleNamespace(run=run, cni=SimpleNamespace(close=close))
    waiting = asyncio.create_task(main._until(stop, agent))
    await asyncio.sleep(0)
    stop.set()
    await waiting
    assert ended == ["calls", "work"]
