"""When an optional kind counts as not installed, and how often it is asked for while it is not. Pure.

Evidence is a 404 for the kind together with discovery documents that do not name it (client.py asks for both). A 404
alone proves nothing: a proxy or load balancer in front of the API sends one too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nodenet.kinds import ApiKind
from nodenet.store import Delta, Removal, StoreEvent

# A kind with objects in force must be missing for this long, and in so many looks, before they count as deleted. When a
# CRD is removed, the API deletes its objects one by one before it stops serving the kind: watches have told of each.
GONE_SECONDS = 30.0
GONE_LOOKS = 3
# Pauses between looks for a kind that is not installed. A look is a GET that is answered with 404, without a read of
# etcd. A policy of a new kind is in force half a minute after its CRD at most.
FIRST_POLL_SECONDS = 1.0
LAST_POLL_SECONDS = 30.0


@dataclass(slots=True)
class Absence:
    """What has been seen of one optional kind. `confirmed`: it is not installed."""

    kind: ApiKind
    confirmed: bool = False
    # The objects that are in force.
    _known: set[tuple[str, str]] = field(default_factory=set)
    _looks: int = 0
    _since: float = 0.0

    def happened(self, event: StoreEvent) -> None:
        """The kind is there; this is what the store is told."""
        self.unclear()
        self.confirmed = False
        if isinstance(event, Delta):
            # The client gives a Delta for what exists, a Removal for what does not.
            self._known.add(self.kind.key(event.obj))
        elif isinstance(event, Removal):
            self._known.discard(event.key)
        else:
            self._known = {*map(self.kind.key, event.objects), *event.keep}

    def unclear(self) -> None:
        """Any other answer, or none: evidence so far does not count. What is confirmed stays so until a list."""
        self._looks = 0

    def missing(self, now: float) -> bool:
        """The API says that it serves no such kind. Returns whether that is confirmed.

        `now`: seconds of the monotonic clock. Without objects in force there is nothing to lose: one look is enough.
        """
        if self._looks == 0:
            self._since = now
        self._looks += 1
        if self._known and (self._looks < GONE_LOOKS or now - self._since < GONE_SECONDS):
            return False
        self.confirmed = True
        self._known.clear()
        return True
