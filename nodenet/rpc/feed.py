"""The flows of one agent for its readers: the ring, and a notification of waiting readers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

from nodenet.flow.filter import Origin
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Query, Reader, Ring, T
from nodenet.flow.types import Flow, Lost
from nodenet.pulse import Pulse


def new_origin(node_name: str, cluster_name: str, node_labels: tuple[str, ...] = ()) -> Origin:
    """An Origin with a random UUID prefix for this run: version 4 and variant bits of RFC 9562, and 72 random bits."""
    digits = os.urandom(10).hex()
    return Origin(node_name, cluster_name, node_labels, f"{digits[:12]}4{digits[13:16]}8{digits[17:]}")


class Feed:
    """The agent calls `pipeline.receive` for each record, and `wake` after each batch. `refresh` passes on what the
    kernel has now; each query begins with it. Use it in one event loop only."""

    def __init__(self, pipeline: Pipeline, origin: Origin, refresh: Callable[[], object] = lambda: None) -> None:
        self.pipeline = pipeline
        self.origin = origin
        self.ring = pipeline.ring
        self._refresh = refresh
        self._more = Pulse()

    def wake(self) -> None:
        """Notify all waiting readers that there may be new flows. One call per batch is enough."""
        self._more.fire()

    @property
    def followed(self) -> bool:
        """True if a reader may wait for new flows."""
        return self._more.asked

    def flows(self, query: Query, deadline: float | None = None) -> AsyncIterator[list[Flow | Lost]]:
        """Batches of flows that match a query. A query with `follow` ends at `deadline` (loop time), or when its task
        is cancelled."""
        return self._read(self.ring, query, deadline)

    def records(self, query: Query) -> AsyncIterator[list[bytes | Lost]]:
        """Batches of the kernel's records. Filters and times of the query are ignored."""
        return self._read(self.pipeline.records, query, None)

    async def _read(self, ring: Ring[T], query: Query, deadline: float | None) -> AsyncIterator[list[T | Lost]]:
        """Yields to other tasks between batches, so that one reader does not block the others."""
        self._refresh()
        reader = Reader(ring, query)
        while True:
            # Take the event before reading, so that a flow that arrives during the read wakes us.
            more = self._more.next()
            batch = reader.read()
            if batch.items:
                yield batch.items
            if batch.done:
                return
            if not reader.waiting:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await more.wait()
            except TimeoutError:
                return
