"""Watches the programs' counters for live entries that were evicted from a shared table."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nodenet.abi import EntryEnd, FairTable, MetricsKey

log = logging.getLogger(__name__)

# Seconds between two looks, and for how long an eviction counts as a current problem.
LOOK_SECONDS = 10.0
RECENT_SECONDS = 600.0
_LOST: Mapping[FairTable, str] = {
    FairTable.CT: "live connections were evicted from nn_ct: their next packet is judged again",
    FairTable.FRAG: "fragmented datagrams were evicted from nn_frag: their later fragments are dropped",
    FairTable.NAT: "flows to Services were evicted from nn_nat: their next packet gets a backend again",
    FairTable.SOCK: "Services were forgotten by sockets that send to more than eight without connect()",
}


class Counters(Protocol):
    """nn_metrics."""

    def get(self, key: MetricsKey) -> Sequence[Any]: ...


class EvictionWatch:
    """`largest`: who uses a table most, in words; "" if that is not known."""

    def __init__(self, counters: Counters, largest: Callable[[FairTable], str] = lambda table: "") -> None:
        self._counters = counters
        self._largest = largest
        self._before: dict[FairTable, int] | None = None
        # (when, table, number of entries)
        self._seen: deque[tuple[float, FairTable, int]] = deque()

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self.look(time.monotonic())
            except OSError as error:
                log.warning("evicted entries could not be counted: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        """Read the counters. What was evicted before the first look does not count: another agent reported it. Raises
        OSError."""
        counts = {table: self._count(table) for table in FairTable}
        before, self._before = self._before, counts
        while self._seen and now - self._seen[0][0] > RECENT_SECONDS:
            self._seen.popleft()
        if before is None:
            return
        known = {table for _, table, _ in self._seen}
        for table, count in counts.items():
            if count > before[table]:
                self._seen.append((now, table, count - before[table]))
                if table not in known:
                    log.warning("%s", self._sentence(table, count - before[table]))

    def problems(self) -> list[str]:
        """One sentence for each table that evicted live entries lately."""
        total: Counter[FairTable] = Counter()
        for _, table, count in self._seen:
            total[table] += count
        minutes = round(RECENT_SECONDS / 60)
        return [f"in the last {minutes} minutes {self._sentence(table, total[table])}" for table in sorted(total)]

    def _count(self, table: FairTable) -> int:
        return sum(cpu.packets for cpu in self._counters.get(MetricsKey.ended(table, EntryEnd.EVICTED)))

    def _sentence(self, table: FairTable, count: int) -> str:
        lost = _LOST.get(table, f"live entries of {table.name.lower()} were evicted")
        largest = self._largest(table)
        return f"{count} {lost}" + (f"; most entries: {largest}" if largest else "")
