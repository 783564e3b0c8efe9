"""Decides when an optional kind counts as not installed, and how often to check for it while it is not. Pure.

The evidence is a 404 for the kind, together with discovery documents that do not list it in any version (discovery.py).
A 404 is not enough: a proxy or load balancer in front of the API can send one too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nodenet.kinds import ApiKind
from nodenet.store import Delta, Removal, StoreEvent

# A kind that has objects must be missing for this many seconds and in this many checks before its objects are deleted.
# There is no hurry: when a CRD is removed, the API first deletes its objects one by one, and the watch reports each.
GONE_SECONDS = 30.0
GONE_CHECKS = 3
# Pauses between checks for a kind that is not installed. A check is a GET of the group's discovery document, which the
# API answers without reading etcd. The agent notices a new CRD after LAST_POLL_SECONDS at most.
FIRST_POLL_SECONDS = 1.0
LAST_POLL_SECONDS = 30.0


@dataclass(slots=True)
class Absence:
    """The evidence about one optional kind. `confirmed`: it is not installed."""

    kind: ApiKind
    confirmed: bool = False
    # Keys of the objects that the store holds.
    _known: set[tuple[str, str]] = field(default_factory=set)
    _checks: int = 0
    _since: float = 0.0

    def record_event(self, event: StoreEvent) -> None:
        """The API serves the kind and sent this event, which the caller passes to the store."""
        self.reset()
        if isinstance(event, Delta):
            # The client reports existing objects as a Delta and deleted ones as a Removal.
            self._known.add(self.kind.key(event.obj))
        elif isinstance(event, Removal):
            self._known.discard(event.key)
        else:
            self._known = {*map(self.kind.key, event.objects), *event.keep}

    def reset(self) -> None:
        """Discard the evidence so far: the answer was not "not served", or there was none."""
        self._checks = 0
        self.confirmed = False

    def record_missing(self, now: float) -> bool:
        """The API answered that it does not serve the kind. Returns whether that is confirmed now.

        `now`: seconds of the monotonic clock. One check is enough if the store holds no objects of the kind.
        """
        if self._checks == 0:
            self._since = now
        self._checks += 1
        # Wait for more evidence: if policies were deleted by mistake, forbidden traffic would be allowed.
        if self._known and (self._checks < GONE_CHECKS or now - self._since < GONE_SECONDS):
            return False
        self.confirmed = True
        self._known.clear()
        return True
