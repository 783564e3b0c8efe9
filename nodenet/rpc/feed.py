"""The flows of one agent as its readers see them: the ring, and a wake-up for those who wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from nodenet.flow.filter import Origin
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Query, Reader, Ring, T
from nodenet.flow.types import Flow, Lost
from nodenet.pulse import Pulse


def new_origin(node_name: str, cluster_name: str, node_labels: tuple[str, ...] = ()) -> Origin:
    """An Origin whose uuids no other run shares: version 4 and variant bits of RFC 9562, 74 random bits."""
    digits = os.urandom(10).hex()
    return Origin(node_name, cluster_name, node_labels, f"{digits[:12]}4{digits[13:16]}8{digits[17:]}")


class Feed:
    """The agent calls `pipeline.receive` for each record and `wake` after each batch. One event loop."""

    def __init__(self, pipeline: Pipeline, origin: Origin) -> None:
        self.pipeline = pipeline
        self.origin = origin
        self.ring = pipeline.ring
        self._more = Pulse()

    def wake(self) -> None:
        """Tell every waiting reader that there may be more. Costs the same for one event or a thousand."""
        self._more.fire()

    def flows(self, query: Query, deadline: float | None = None) -> AsyncIterator[list[Flow | Lost]]:
        """Batches of flows that answer a query. A following one ends at `deadline` (loop time), or when its task is
        cancelled."""
        return self._read(self.ring, query, deadline)

    def records(self, query: Query) -> AsyncIterator[list[bytes | Lost]]:
        """The same of the kernel's records; they take no filter and no times."""
        return self._read(self.pipeline.records, query, None)

    async def _read(self, ring: Ring[T], query: Query, deadline: float | None) -> AsyncIterator[list[T | Lost]]:
        """Between batches other tasks have their turn, so that a reader of everything does not stop the others."""
        reader = Reader(ring, query)
        while True:
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
