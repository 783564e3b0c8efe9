"""When the agent reads the kernel's events."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodenet.agent.events import EVENT_SECONDS, QUIET_SECONDS, Events
from nodenet.compile.state import LocalNode
from nodenet.engine import Engine
from nodenet.flow.ring import Query
from nodenet.model import Node
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Op, listings
from nodenet.testing import fake_tables
from tests.unit.flow.conftest import BASE


class Kernel:
    """A Datapath whose ring buffer is a list."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(flow_buffer=16, node_name="node-1", cluster_name="blue")
        self.tables = {"nn_metrics": SimpleNamespace(get=lambda key: None)}
        self.records: list[bytes] = []
        self.fd, self._writer = os.pipe()
        self._receive: Callable[[bytes], None] = lambda record: None

    def read_events(self, receive: Callable[[bytes], None]) -> Kernel:
        self._receive = receive
        return self

    def consume(self) -> bool:
        records, self.records = self.records, []
        for record in records:
            self._receive(record)
        return False

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._writer)


@pytest.fixture
async def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def engine() -> Engine:
    made = Engine(LocalNode("node-1"), fake_tables(), NoPrograms())
    made.feed(*listings([]))
    return made


@pytest.fixture
async def events(kernel: Kernel, engine: Engine) -> AsyncIterator[Events]:
    made = Events(cast(Any, kernel), engine)
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    yield made
    running.cancel()
    await asyncio.wait((running,))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 the agent has no event for it
        await asyncio.sleep(0.01)


async def test_flows_have_the_labels_of_the_node(kernel: Kernel, events: Events, engine: Engine) -> None:
    assert events.feed.origin.node_labels == ()
    engine.feed(Delta(Op.ADDED, Node("node-1", labels={"zone": "a", "arch": "x"})), Delta(Op.ADDED, Node("other")))
    async with asyncio.timeout(10):
        await until(lambda: events.feed.origin.node_labels == ("arch=x", "zone=a"))
    before = events.feed.origin
    engine.feed(Delta(Op.MODIFIED, Node("other", labels={"zone": "b"})))
    await asyncio.sleep(0.05)
    assert events.feed.origin is before
    engine.feed(Delta(Op.DELETED, Node("node-1", labels={"zone": "a"})))
    async with asyncio.timeout(10):
        await until(lambda: not events.feed.origin.node_labels)
    # UUIDs of flows go on as before.
    assert events.feed.origin.uuid(1) == before.uuid(1)


async def test_a_query_has_the_events_that_were_not_read_yet(kernel: Kernel, events: Events) -> None:
    kernel.records = [BASE.pack()]
    batches = [batch async for batch in events.feed.flows(Query(number=10))]
    assert [len(batch) for batch in batches] == [1]


async def test_the_pause_is_long_only_while_nothing_comes_and_nobody_waits(events: Events) -> None:
    assert events.pause(found=False) == QUIET_SECONDS
    assert events.pause(found=True) == EVENT_SECONDS
    following = asyncio.create_task(anext(events.feed.flows(Query(follow=True))))
    await asyncio.sleep(0)
    assert events.pause(found=False) == EVENT_SECONDS
    following.cancel()
