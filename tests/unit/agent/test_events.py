"""When the agent reads the kernel's events."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodenet.agent.events import EVENT_SECONDS, QUIET_SECONDS, Events
from nodenet.flow.ring import Query
from nodenet.flow.types import NameTable
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
async def events(kernel: Kernel) -> AsyncIterator[Events]:
    made = Events(cast(Any, kernel), cast(Any, SimpleNamespace(flow_names=NameTable)))
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    yield made
    running.cancel()
    await asyncio.wait((running,))


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
