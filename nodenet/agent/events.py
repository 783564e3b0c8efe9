"""Events up: from the kernel's ring buffer to flows that readers of the agent's API see."""

from __future__ import annotations

import asyncio
import time

from nodenet import abi
from nodenet.agent.datapath import Datapath
from nodenet.bpf.ringbuf import EventReader
from nodenet.engine import Engine
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.rpc.feed import Feed, new_origin

# Seconds between looks at what the kernel lost, and at the time of day.
UPKEEP_SECONDS = 1.0
# Seconds between looks into the ring buffer, whose writers wake nobody before it fills (bpf/lib/events.h).
EVENT_SECONDS = 0.05


class Events:
    """Reads the ring buffer, names what it finds by the engine's last compilation, and wakes readers."""

    def __init__(self, datapath: Datapath, engine: Engine) -> None:
        config = datapath.config
        self._datapath = datapath
        self.pipeline = Pipeline(Ring(config.flow_buffer), _clock_offset(), engine.flow_names)
        self.feed = Feed(self.pipeline, new_origin(config.node_name, config.cluster_name))
        self._lost = 0

    async def run(self) -> None:
        """Until cancelled."""
        reader = self._datapath.read_events(self.pipeline.receive)
        event_loop = asyncio.get_running_loop()
        event_loop.add_reader(reader.fd, self._read, reader)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look(reader), name="look for events")
                tasks.create_task(self._upkeep(), name="lost events")
        finally:
            event_loop.remove_reader(reader.fd)
            reader.close()

    async def _look(self, reader: EventReader) -> None:
        more = False
        while True:
            await asyncio.sleep(0 if more else EVENT_SECONDS)
            more = self._read(reader)

    def _read(self, reader: EventReader) -> bool:
        """One batch; whether there may be more."""
        seen = self.pipeline.ring.end
        more = reader.consume()
        if self.pipeline.ring.end != seen:
            self.feed.wake()
        return more

    async def _upkeep(self) -> None:
        """What the ring buffer had no room for, and the distance between the clocks."""
        self._lost = self._count_lost()
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.pipeline.clock_offset = _clock_offset()
            lost = self._count_lost()
            if lost > self._lost:
                self.pipeline.lost_in_kernel(lost - self._lost, time.time_ns())
                self.feed.wake()
                self._lost = lost

    def _count_lost(self) -> int:
        metrics = self._datapath.tables["nn_metrics"]
        keys = [abi.MetricsKey(abi.LOST_EVENTS, direction) for direction in (1, 2)]
        return sum(entry.packets for key in keys for entry in metrics.get(key) or ())


def _clock_offset() -> int:
    """Nanoseconds from CLOCK_MONOTONIC, which the kernel's events carry, to the time of day."""
    return time.time_ns() - time.monotonic_ns()
