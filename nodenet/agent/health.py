"""Decides whether the agent works, and lists its problems."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from nodenet.agent.keepers import Keepers
from nodenet.agent.stale import stale
from nodenet.agent.watch import ApiWatch
from nodenet.engine import Engine
from nodenet.kube.writer import KubeWriter

_MOST_SENTENCES = 10


class Health:
    """The agent's health, for probes, `nodenet status` and CNI STATUS."""

    def __init__(self, engine: Engine, api: ApiWatch, keepers: Keepers, writer: KubeWriter) -> None:
        # Set when endpoints and Services are in force for the first time.
        self.ready = asyncio.Event()
        # Seconds from the start of the process, including interpreter and imports, until the agent was ready.
        self.ready_after = 0.0
        self._engine = engine
        self._api = api
        self._keepers = keepers
        self._writer = writer
        self._more: list[Callable[[], list[str]]] = []

    def also(self, problems: Callable[[], list[str]]) -> None:
        """Add a part that has problems of its own to report."""
        self._more.append(problems)

    def became_ready(self) -> None:
        """Call it when programs are attached, maps are filled, and the agent answers the CNI plugin."""
        self.ready_after = _process_age()
        self.ready.set()

    def missing(self) -> list[str]:
        """What is missing until the agent is ready, one sentence each. Empty after that: later problems do not stop the
        node from serving its pods."""
        if self.ready.is_set():
            return []
        return self.problems() or ["the programs are not attached yet"]

    def healthy(self) -> bool:
        """True if the agent works. An unreachable API server does not count here, because a restart would not help: see
        `api_known`."""
        return self.ready.is_set() and not self._engine.stats.failing

    def api_known(self) -> bool:
        """True if the state in force is up to date with the API, as far as the agent knows."""
        return not self._api.cut_off()

    def problems(self) -> list[str]:
        """One sentence for each current problem."""
        stats = self._engine.stats
        maps = [f"maps: {stats.last_error}"] if stats.failing else []
        objects = stale(self._engine.current, stats.stale)
        maps += shortened([f"not up to date: {name}" for name in objects])
        left_out = shortened([str(one) for one in self._engine.current.names.left_out])
        addresses = self._engine.current.names.left_out_addresses
        if addresses:
            maps.append(
                f"nn_ipcache: {addresses} addresses of pods have no room: no rule selects these pods, and pods that a "
                "ClusterNetworkPolicy selects do not talk to them; increase ipcache_entries"
            )
        parts = [self._api.problems(), self._writer.problems(), self._keepers.problems()]
        parts += [shortened(problems()) for problems in self._more]
        return [*(problem for part in parts for problem in part), *maps, *left_out]

    async def in_words(self) -> str:
        """For CNI STATUS: the problems that prevent the node from serving its pods, as one text, or ""."""
        return "" if self.healthy() else "; ".join(self.problems()) or "it is not ready yet"


def shortened(sentences: list[str]) -> list[str]:
    """The first sentences, and how many more there are. Users who can create many objects must not flood the output."""
    more = len(sentences) - _MOST_SENTENCES
    return [*sentences[:_MOST_SENTENCES], f"and {more} more: nodenet status -o json"] if more > 0 else sentences


def _process_age() -> float:
    """Seconds since the start of this process, from field 22 of /proc/self/stat (clock ticks since boot; proc(5))."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
