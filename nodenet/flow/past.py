"""Keeps the names of deleted pods for a while: their last packets arrive after the API has deleted them.

Names are kept by address and compared with the time of each event. A pod that later gets the address is used for later
flows, and for flows that the datapath decided with its identity. Pure: the caller passes all times.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodenet.evolved import changed_keys
from nodenet.flow.types import Party, Past
from nodenet.model import IPAddress

# A broken connection is retried for about this long. host-local reuses an address only after all others.
LINGER_NS = 60 * 10**9
# The largest number of names; the oldest are evicted first.
MOST = 8192


class PastNames:
    """The previous owners of addresses. All times are nanoseconds of CLOCK_MONOTONIC, as in events."""

    def __init__(self) -> None:
        self._pods: Mapping[IPAddress, Party] = {}
        # Oldest first.
        self._past: dict[IPAddress, Past] = {}
        # A copy of `_past`, which does not change.
        self._shown: Mapping[IPAddress, Past] = {}

    def update(self, pods: Mapping[IPAddress, Party], now: int) -> Mapping[IPAddress, Past]:
        """`pods`: the current owners. Returns the previous owners whose names are still used."""
        # Without any earlier owner there is nothing to compare.
        for address in changed_keys(self._pods, pods) if self._pods or self._past else ():
            before, after = self._pods.get(address), pods.get(address)
            if before is not None and (after is None or not _same(after, before)):
                self._past.pop(address, None)
                self._past[address] = Past(before, now, now + LINGER_NS)
            # The same pod has its address again: it is not a previous owner.
            past = self._past.get(address)
            if past is not None and after is not None and _same(after, past.party):
                del self._past[address]
        expired: list[IPAddress] = []
        for address, past in self._past.items():
            # Entries are in order of age: all later ones are valid too.
            if past.until >= now and len(self._past) - len(expired) <= MOST:
                break
            expired.append(address)
        for address in expired:
            del self._past[address]
        if expired or pods is not self._pods:
            self._shown = dict(self._past)
        self._pods = pods
        return self._shown


def _same(one: Party, other: Party) -> bool:
    return (one.namespace, one.pod) == (other.namespace, other.pod)
