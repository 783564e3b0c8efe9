"""Watches the programs' counters for what they lost because a table, or a range of ports, was full."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from nodenet.abi import DropReason, EntryEnd, FairTable, MetricsKey
from nodenet.model import Direction

log = logging.getLogger(__name__)

# Seconds between two looks, and for how long an eviction counts as a current problem.
LOOK_SECONDS = 10.0
RECENT_SECONDS = 600.0


class Loss(NamedTuple):
    """A counter of what the programs lost, and the words about it. `table`: whose users may be named."""

    key: MetricsKey
    words: str
    table: FairTable | None = None


def _evicted(table: FairTable, words: str) -> Loss:
    return Loss(MetricsKey.ended(table, EntryEnd.EVICTED), words, table)


LOSSES = (
    _evicted(FairTable.CT, "live connections were evicted from nn_ct: their next packet is judged again"),
    _evicted(FairTable.FRAG, "fragmented datagrams were evicted from nn_frag: their later fragments are dropped"),
    _evicted(FairTable.NAT, "flows to Services were evicted from nn_nat: their next packet gets a backend again"),
    _evicted(FairTable.SOCK, "Services were forgotten by sockets that send to more than eight without connect()"),
    Loss(
        MetricsKey(DropReason.NO_MAPPING_FOR_NAT_MASQUERADE, Direction.INGRESS),
        "packets from outside found no free port for their backend on another node, and were dropped: source_ports are "
        "used up, or the node has no address of this IP version",
    ),
)


class Counters(Protocol):
    """nn_metrics."""

    def get(self, key: MetricsKey) -> Sequence[Any]: ...


class EvictionWatch:
    """`largest`: who uses a table most, in words; "" if that is not known."""

    def __init__(self, counters: Counters, largest: Callable[[FairTable], str] = lambda table: "") -> None:
        self._counters = counters
        self._largest = largest
        self._before: dict[Loss, int] | None = None
        # (when, what, how many)
        self._seen: deque[tuple[float, Loss, int]] = deque()

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self.look(time.monotonic())
            except OSError as error:
                log.warning("evicted entries could not be counted: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        """Read the counters. What was lost before the first look does not count: another agent reported it. Raises
        OSError."""
        counts = {loss: sum(cpu.packets for cpu in self._counters.get(loss.key)) for loss in LOSSES}
        before, self._before = self._before, counts
        while self._seen and now - self._seen[0][0] > RECENT_SECONDS:
            self._seen.popleft()
        if before is None:
            return
        known = {loss for _, loss, _ in self._seen}
        for loss, count in counts.items():
            if count > before[loss]:
                self._seen.append((now, loss, count - before[loss]))
                if loss not in known:
                    log.warning("%s", self._sentence(loss, count - before[loss]))

    def problems(self) -> list[str]:
        """One sentence for each kind of loss lately."""
        total: Counter[Loss] = Counter()
        for _, loss, count in self._seen:
            total[loss] += count
        minutes = round(RECENT_SECONDS / 60)
        return [f"in the last {minutes} minutes {self._sentence(loss, total[loss])}" for loss in LOSSES if total[loss]]

    def _sentence(self, loss: Loss, count: int) -> str:
        largest = self._largest(loss.table) if loss.table is not None else ""
        return f"{count} {loss.words}" + (f"; most entries: {largest}" if largest else "")
