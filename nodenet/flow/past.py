"""Names of pods that are gone, for their last flows: a pod's last packets come after the API has forgotten it.

Kept by address, for a while, and compared with the time of each event: a pod that gets the address has it for flows
from then on, and for flows that the datapath judged by its identity. Pure: times are the callers'.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        for address, party in self._pods.items():
            after = pods.get(address)
            if after is not party and (after is None or not _same(after, party)):
                self._past.pop(address, None)
                self._past[address] = Past(party, now, now + LINGER_NS)
        expired = [
            address
            for address, past in self._past.items()
            if past.until < now or (address in pods and _same(pods[address], past.party))
        ]
        for address in expired:
            del self._past[address]
        for address in list(self._past)[: max(0, len(self._past) - MOST)]:
            del self._past[address]
        self._pods = pods
        return dict(self._past)


def _same(one: Party, other: Party) -> bool:
    return (one.namespace, one.pod) == (other.namespace, other.pod)
