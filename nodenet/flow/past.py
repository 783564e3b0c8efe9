"""Names of pods that are gone, for their last flows: a pod's last packets come after the API has forgotten it.

Kept by address, for a while, and compared with the time of each event: a pod that gets the address has it for flows
from then on, and for flows that the datapath judged by its identity. Pure: times are the callers'.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodenet.evolved import changed_keys
from nodenet.flow.types import Party, Past
from nodenet.model import IPAddress

# A connection that is cut off is retried for about this long; host-local gives an address again only after all others.
LINGER_NS = 60 * 10**9
# So many names at most; the oldest go first.
MOST = 8192


class PastNames:
    """Whose the addresses were. `now` and all times are nanoseconds of CLOCK_MONOTONIC, as in events."""

    def __init__(self) -> None:
        self._pods: Mapping[IPAddress, Party] = {}
        # Oldest first.
        self._past: dict[IPAddress, Past] = {}

    def update(self, pods: Mapping[IPAddress, Party], now: int) -> dict[IPAddress, Past]:
        """`pods` is who has which address from now on. Returns the names to use besides."""
        for address in changed_keys(self._pods, pods):
            before, after = self._pods.get(address), pods.get(address)
            if before is not None and (after is None or not _same(after, before)):
                self._past.pop(address, None)
                self._past[address] = Past(before, now, now + LINGER_NS)
            past = self._past.get(address)
            if past is not None and after is not None and _same(after, past.party):
                del self._past[address]
        for address, past in list(self._past.items()):
            if past.until >= now and len(self._past) <= MOST:
                break
            del self._past[address]
        self._pods = pods
        return dict(self._past)


def _same(one: Party, other: Party) -> bool:
    return (one.namespace, one.pod) == (other.namespace, other.pod)
