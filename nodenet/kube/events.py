"""Sends Events about API objects, for `kubectl describe`: in the background, in order, and within a budget."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nodenet.kinds import ApiResource
from nodenet.kube.correlate import Correlator, Entry, Notice
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import KubeWriter, Target
from nodenet.model import ObjectRef

log = logging.getLogger(__name__)

# Event of the core group: `kubectl get events` and `describe` read it, and it has a count. The API stores the same
# object for events.k8s.io.
EVENTS = ApiResource("", "v1", "Event", "events")
# The namespace of Events about cluster-scoped objects.
DEFAULT_NAMESPACE = "default"
# The largest number of entries in the queue. Further ones are dropped and counted.
WAITING = 256


class EventRecorder:
    """`component` and `host` name the reporter. `record` never blocks; `run` sends."""

    def __init__(
        self,
        writer: KubeWriter,
        component: str,
        host: str,
        *,
        waiting: int = WAITING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lost = 0
        self._writer = writer
        self._source = {"component": component, "host": host}
        self._clock = clock
        self._correlator = Correlator()
        self._waiting: asyncio.Queue[Entry] = asyncio.Queue(waiting)

    def record(self, notice: Notice) -> None:
        """Queue one notice. It is ignored if it exceeds a budget; it is dropped and counted in `lost` if the queue is
        full."""
        # Check this first, so that a dropped notice uses no budget.
        if self._waiting.full():
            self.lost += 1
            return
        entry = self._correlator.take(notice, self._clock())
        if entry is not None:
            self._waiting.put_nowait(entry)

    async def run(self) -> None:
        """Send entries until cancelled."""
        while True:
            await self.send(await self._waiting.get())
            self._waiting.task_done()

    async def flush(self) -> None:
        """Wait until the queue is empty and everything has been sent."""
        await self._waiting.join()

    async def send(self, entry: Entry) -> None:
        namespace = entry.notice.about.namespace or DEFAULT_NAMESPACE
        if entry.count > 1:
            target = Target(EVENTS, ObjectRef(namespace, entry.name))
            last = {"count": entry.count, "lastTimestamp": _time(entry.last), "message": entry.notice.message}
            if await self._writer.patch(target, last) is not Outcome.GONE:
                return
            # The API deletes an Event after an hour: create it again, with the count so far.
        outcome = await self._writer.create(EVENTS, namespace, self._event(entry, namespace))
        if outcome is not Outcome.DONE:
            # The API has no such Event: the next notice must create one instead of patching it.
            self._correlator.forget(entry)

    def _event(self, entry: Entry, namespace: str) -> dict[str, Any]:
        about, notice = entry.notice.about, entry.notice
        involved = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name, "uid": about.uid}
        if about.namespace:
            involved["namespace"] = about.namespace
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": entry.name, "namespace": namespace},
            "involvedObject": involved,
            "type": notice.type,
            "reason": notice.reason,
            "message": notice.message,
            "count": entry.count,
            "firstTimestamp": _time(entry.first),
            "lastTimestamp": _time(entry.last),
            "source": self._source,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._source["host"],
        }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
