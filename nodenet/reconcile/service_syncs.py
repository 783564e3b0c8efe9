"""Which changes of Services and EndpointSlices are in the maps, and how long they took: for kube-proxy's metrics.

Call all methods in the event loop. A change costs about two microseconds here, and a millisecond altogether.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# An agent that cannot write the maps for a long time remembers only the newest changes.
_MOST_TRIGGERS = 10_000


class Changes(NamedTuple):
    """Numbers of changed objects since the start."""

    services: int = 0
    slices: int = 0


class ServiceSyncs:
    """`started`: seconds since the epoch. As in kube-proxy, latencies of earlier changes are not recorded: they include
    the time without an agent."""

    def __init__(self, started: float) -> None:
        self._started = started
        # Seconds since the epoch; 0: not yet. The last change that arrived; the last run with all Services in force.
        self.queued_at = 0.0
        self.synced_at = 0.0
        # What the maps have.
        self.synced = Changes()
        self._taken = Changes()
        self._waiting: deque[float] = deque(maxlen=_MOST_TRIGGERS)
        self._in_run: deque[float] = deque(maxlen=_MOST_TRIGGERS)

    def queued(self, now: float, triggers: Iterable[float]) -> None:
        """Changes arrived at `now`. `triggers`: the times at which their pods changed."""
        self.queued_at = now
        for time in triggers:
            if time > self._started:
                self._waiting.append(time)

    def taken(self, changes: Changes) -> None:
        """A run begins that includes these changes."""
        self._taken = changes
        if self._waiting:
            self._in_run.extend(self._waiting)
            self._waiting.clear()

    def finished(self, now: float, *, in_force: bool, full: bool) -> Sequence[float] | None:
        """The run ended. Returns the seconds from the changes of pods, as the control plane wrote them into the
        EndpointSlices, until now. None if the run had nothing to do with Services, or could not bring them into force:
        its changes then count for the next run."""
        if not in_force:
            return None
        self.synced_at = now
        if self._taken == self.synced and not full:
            return None
        self.synced = self._taken
        if not self._in_run:
            return ()
        # The clocks of nodes differ: no change takes less than no time.
        latencies = [now - time if now > time else 0.0 for time in self._in_run]
        self._in_run.clear()
        return latencies
