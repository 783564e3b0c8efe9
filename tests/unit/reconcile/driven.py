"""An engine on maps in memory, with a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from nodenet.abi import U32, State
from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.kinds import KINDS
from nodenet.model import Namespace
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.loop import Run
from nodenet.reconcile.maps import TABLES
from nodenet.store import Delta, Op, listings
from nodenet.testing import FakeClock, FakeTable
from tests.unit.compile.build import endpoint, pod, service, slice_

LOCAL = LocalNode("node1")


def fake_tables(**limits: int) -> dict[str, FakeTable]:
    tables = {name: FakeTable(name, max_entries=limits.get(name, 1 << 20)) for name in TABLES}
    tables["nn_state"].update(U32(0), State(0, 0))
    return tables


class Agent:
    """An engine with a clock that a test moves, without threads."""

    def __init__(self, objects: Iterable[object], tables: Any) -> None:
        self.clock = FakeClock()
        self.engine = Engine(LOCAL, tables, NoPrograms(), self.clock, run_blocking=self.run_blocking)
        self.engine.feed(*listings(objects))
        self.loop = self.engine._loop
        self.stats = self.engine.stats
        self.runs: list[Run] = []

    @property
    def objects(self) -> list[object]:
        """Everything that was fed."""
        return [obj for kind in KINDS for obj in getattr(self.engine.snapshot(), kind.place).values()]

    @property
    def comparing(self) -> bool:
        return self.engine._work.maps.comparing

    async def run_blocking(self, work: Callable[[], Any]) -> Any:
        return work()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        task = asyncio.create_task(self.engine.run(self.runs.append))
        try:
            yield self.engine
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def feed(self, *objects: object) -> None:
        self.engine.feed(*(Delta(Op.MODIFIED, obj) for obj in objects))

    async def change(self, *objects: object) -> None:
        self.feed(*objects)
        await within(self.engine.in_force())


async def within(what: Awaitable[object]) -> None:
    async with asyncio.timeout(5):
        await what


async def turns(number: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


def some_objects() -> list[object]:
    return [
        Namespace("default", {}),
        pod("web", "10.0.1.9"),
        endpoint(1, "web", "10.0.1.9"),
        service("s", "10.96.0.1"),
        slice_("s", "10.0.1.9"),
    ]
