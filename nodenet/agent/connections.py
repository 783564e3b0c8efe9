"""Deletes expired entries of nn_ct and nn_nat, and counts those of nn_ct by endpoint.

The programs do not need this: a full bucket loses its expired entries first (bpf/lib/fair.h). It keeps `ct list` and
the fill of the map true, and shows which endpoint uses the table. The slot of a deleted entry stays until the programs
need it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nodenet.abi import FairTable
from nodenet.abi.carried import (
    ct_expired,
    ct_owner,
    nat_expired,
    nat_follows,
    nat_is_reply,
    nat_other,
    nat_service_of_node,
)

log = logging.getLogger(__name__)

# Between two slices of about a thousand entries: half a million take two seconds and a small part of a CPU.
SLICE_PAUSE_SECONDS = 0.005
# Shown by `nodenet status`.
LARGEST = 3


class Table(Protocol):
    """nn_ct, in bytes."""

    max_entries: int

    def chunks(self) -> Iterator[Sequence[tuple[bytes, bytes]]]: ...

    def lookup(self, key: bytes) -> bytes | None: ...

    def remove(self, key: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Count:
    """What one collection found. The counters are live entries by the number of their endpoint; both have a flow
    between two pods of the node twice, once for each."""

    size: int = 0
    entries: Counter[int] = field(default_factory=Counter)
    unanswered: Counter[int] = field(default_factory=Counter)
    # Live flows by the number of the Service that they called, on the side of the pod that called it.
    services: Counter[int] = field(default_factory=Counter)
    expired: int = 0


def collect(table: Table, now: int, pause: Callable[[], None]) -> Count:
    """Delete what has expired at `now` (seconds of CLOCK_MONOTONIC). Blocks: for a worker thread. Raises OSError."""
    entries: Counter[int] = Counter()
    unanswered: Counter[int] = Counter()
    services: Counter[int] = Counter()
    expired = 0
    for chunk in table.chunks():
        for key, value in chunk:
            if ct_expired(key, value, now):
                expired += _delete(table, key, now)
                continue
            endpoint_id, answered, service_id = ct_owner(value)
            if service_id:
                services[service_id] += 1
            entries[endpoint_id] += 1
            unanswered[endpoint_id] += not answered
        pause()
    return Count(table.max_entries, entries, unanswered, services, expired)


def _delete(table: Table, key: bytes, now: int) -> bool:
    """Read the entry again: a packet may have opened the flow again since the slice was read."""
    value = table.lookup(key)
    return value is not None and ct_expired(key, value, now) and table.remove(key)


def _delete_single(flows: Table, key: bytes, now: int) -> bool:
    """Delete a half for replies if it has expired and the client's half is missing. The programs renew only the
    client's half, so a half that looks expired may be in use. As in `_delete`, the entry is read again."""
    latest = flows.lookup(key)
    if latest is None or not nat_expired(key, latest, now) or flows.lookup(nat_other(key, latest)) is not None:
        return False
    return flows.remove(key)


@dataclass(frozen=True, slots=True)
class Flows:
    """What one collection of nn_nat found. `services`: live flows from outside, by the number of the Service."""

    expired: int = 0
    services: Counter[int] = field(default_factory=Counter)


def collect_flows(flows: Table, now: int, pause: Callable[[], None]) -> Flows:
    """Delete both halves of the flows of nn_nat that have expired at `now`, and halves for replies without the
    client's half. Blocks, as `collect`. Raises OSError."""
    expired = 0
    services: Counter[int] = Counter()
    for chunk in flows.chunks():
        for key, value in chunk:
            if not nat_expired(key, value, now):
                service_id = nat_service_of_node(key, value)
                if service_id:
                    services[service_id] += 1
                continue
            if nat_is_reply(key):
                expired += _delete_single(flows, key, now)
                continue
            # As in `_delete`.
            latest = flows.lookup(key)
            if latest is not None and nat_expired(key, latest, now):
                # The programs take the flow for gone when the client's half is, and may make it again meanwhile. The
                # halves of source translation are a pair of the same kind.
                expired += flows.remove(key) and not nat_follows(key)
                flows.remove(nat_other(key, latest))
        pause()
    return Flows(expired, services)


class ConnectionKeeper:
    """Collects every `seconds`. `flows`: nn_nat. `names`: pods by the number of their endpoint, as they are now."""

    def __init__(self, table: Table, flows: Table, names: Callable[[], Mapping[int, str]], seconds: float) -> None:
        self.last = Count()
        self.outside = Flows()
        # Entries that were deleted since the agent started.
        self.expired = 0
        # A sentence if the last collection failed.
        self.problems: list[str] = []
        self._table = table
        self._flows = flows
        self._names = names
        self._seconds = seconds

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await self.collect()
            await asyncio.sleep(self._seconds)

    async def collect(self) -> None:
        """Once."""
        try:
            self.last = await asyncio.to_thread(collect, self._table, int(time.monotonic()), _pause)
            self.outside = await asyncio.to_thread(collect_flows, self._flows, int(time.monotonic()), _pause)
        except OSError as error:
            self.problems = [f"expired connections are not collected: {error}"]
            return
        self.problems = []
        self.expired += self.last.expired

    def by_pod(self) -> dict[tuple[str, str], int]:
        """Live entries by pod and "answered" or "unanswered". Entries of endpoints that are gone have the pod ""."""
        names, found = self._names(), Counter[tuple[str, str]]()
        for number, count in self.last.entries.items():
            unanswered = self.last.unanswered[number]
            found[names.get(number, ""), "unanswered"] += unanswered
            found[names.get(number, ""), "answered"] += count - unanswered
        return dict(found)

    def largest_of(self, table: FairTable) -> str:
        """The pod with most entries of nn_ct, in words, as last counted; "" for other tables."""
        if table is not FairTable.CT or not self.last.entries:
            return ""
        ((number, count),) = self.last.entries.most_common(1)
        return f"{self._names().get(number, 'deleted pods')} ({count})"

    def status(self) -> Mapping[str, object]:
        """For `nodenet status`: what the last collection counted."""
        names, total = self._names(), self.last.entries.total()
        return {
            "entries": total,
            "size": self.last.size,
            "expired": self.expired,
            "largest": {
                names.get(number, "(deleted pods)"): f"{count} entries, {self.last.unanswered[number]} unanswered"
                for number, count in self.last.entries.most_common(LARGEST)
            },
        }


def _pause() -> None:
    time.sleep(SLICE_PAUSE_SECONDS)
