"""Reads events from the kernel's ring buffer and publishes them as flows to readers of the agent's API."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from nodenet import abi, kinds
from nodenet.agent.datapath import Datapath, netns_cookie
from nodenet.bpf.ringbuf import EventReader
from nodenet.engine import Engine
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.model import ObjectRef
from nodenet.rpc.feed import Feed, new_origin

# Seconds between two reads of the lost-event counter and of the clock offset.
UPKEEP_SECONDS = 1.0
# Seconds between two reads of the ring buffer. The programs wake the reader only when the buffer fills
# (bpf/lib/events.h).
EVENT_SECONDS = 0.05
# The same while the last read found nothing and no client follows the flows.
QUIET_SECONDS = 0.2


class Events:
    """Reads the ring buffer, adds names from the engine's last compilation, and wakes the readers of flows."""

    def __init__(self, datapath: Datapath, engine: Engine) -> None:
        config = datapath.config
        self._datapath = datapath
        self._engine = engine
        self.pipeline = Pipeline(Ring(config.flow_buffer), _clock_offset(), engine.flow_names, netns_cookie())
        self._reader: EventReader | None = None
        self.feed = Feed(self.pipeline, new_origin(config.node_name, config.cluster_name), self._refresh)
        self._lost = 0

    async def run(self) -> None:
        """Until cancelled."""
        self._reader = reader = self._datapath.read_events(self.pipeline.receive)
        event_loop = asyncio.get_running_loop()
        event_loop.add_reader(reader.fd, self._read, reader)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll(reader), name="poll events")
                tasks.create_task(self._upkeep(), name="lost events")
                tasks.create_task(self._label(), name="node labels")
        finally:
            event_loop.remove_reader(reader.fd)
            self._reader = None
            reader.close()

    async def _poll(self, reader: EventReader) -> None:
        more, seen = False, self.pipeline.ring.end
        while True:
            found = self.pipeline.ring.end != seen
            seen = self.pipeline.ring.end
            await asyncio.sleep(0 if more else self.pause(found))
            more = self._read(reader)

    def pause(self, found: bool) -> float:
        """Seconds until the next read. `found`: there were events since the last one."""
        return EVENT_SECONDS if found or self.feed.followed else QUIET_SECONDS

    def _refresh(self) -> None:
        if self._reader is not None:
            self._read(self._reader)

    def _read(self, reader: EventReader) -> bool:
        """Read one batch. Returns True if there may be more."""
        seen = self.pipeline.ring.end
        more = reader.consume()
        if self.pipeline.ring.end != seen:
            self.feed.wake()
        return more

    async def _upkeep(self) -> None:
        """Update the number of lost events and the offset between the clocks, until cancelled."""
        self._lost = self._count_lost()
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.pipeline.clock_offset = _clock_offset()
            lost = self._count_lost()
            if lost > self._lost:
                self.pipeline.lost_in_kernel(lost - self._lost, time.time_ns())
                self.feed.wake()
                self._lost = lost

    async def _label(self) -> None:
        """Keep the labels of the node in the flows up to date, until cancelled."""
        while True:
            change = self._engine.next_change(kinds.NODE)
            node = self._engine.snapshot().nodes.get(ObjectRef("", self.feed.origin.node_name))
            labels = tuple(f"{key}={value}" for key, value in sorted(node.labels.items())) if node is not None else ()
            if labels != self.feed.origin.node_labels:
                self.feed.origin = replace(self.feed.origin, node_labels=labels)
            await change.wait()

    def _count_lost(self) -> int:
        metrics = self._datapath.tables["nn_metrics"]
        keys = [abi.MetricsKey(abi.LOST_EVENTS, direction) for direction in (1, 2)]
        return sum(entry.packets for key in keys for entry in metrics.get(key) or ())


def _clock_offset() -> int:
    """Nanoseconds to add to CLOCK_MONOTONIC, the time in the kernel's events, to get the time of day."""
    return time.time_ns() - time.monotonic_ns()
