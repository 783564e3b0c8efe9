"""Feeds the engine with the objects of the Kubernetes API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from nodenet.agent.api_health import as_rows, watch_trouble
from nodenet.engine import Engine
from nodenet.kinds import API_KINDS, ApiKind
from nodenet.kube.client import KubeClient
from nodenet.kube.health import KindStats


class ApiWatch:
    """One watch for each kind. This object knows the state of the watches; the engine has the objects."""

    def __init__(self, client: KubeClient, engine: Engine, hint: str = "") -> None:
        """`hint`: what may be the reason if the API server is not reached before the first list."""
        self._client = client
        self._engine = engine
        self._hint = hint

    @property
    def stats(self) -> Mapping[ApiKind, KindStats]:
        """The counters and errors of each watch."""
        return self._client.stats

    async def run(self) -> None:
        """Run until cancelled. Errors of the server do not end it."""
        async with self._client, asyncio.TaskGroup() as tasks:
            for kind in API_KINDS:
                tasks.create_task(self._watch(kind), name=f"watch {kind}")

    async def _watch(self, kind: ApiKind) -> None:
        async for event in self._client.watch(kind):
            self._engine.feed(event)

    def cut_off(self) -> bool:
        """True if the API server has been unreachable or silent for long, so that the state in force may be old."""
        return any(stats.cut_off(time.monotonic()) for stats in self.stats.values())

    def problems(self) -> list[str]:
        """One sentence for each current problem."""
        found = list(watch_trouble(self.stats, time.monotonic()))
        if self._engine.missing:
            found.insert(0, f"waiting for the first list of: {', '.join(map(str, self._engine.missing))}")
            if self._hint and any(stats.error for stats in self.stats.values()):
                found.insert(1, self._hint)
        return found

    def as_rows(self) -> dict[str, Any]:
        """The watches by kind, for `status -o json`."""
        return as_rows(self.stats, time.monotonic())
