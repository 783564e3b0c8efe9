"""When to bring the kernel's maps up to date: coalesces triggers, retries, compares now and then.

Runs are in a worker thread, so that the event loop goes on meanwhile. Runs with little to do are in the event loop: the
way to a thread and back costs as much as they do. The regular comparison (resync) goes on in slices between the runs.
After a difference the next run reads all maps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nodenet import backoff
from nodenet.errors import NodenetError
from nodenet.pulse import Pulse
from nodenet.reconcile.clock import Clock, RealClock
from nodenet.reconcile.maps import Maps, Outcome
from nodenet.reconcile.plan import Write
from nodenet.tables import Group

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 30.0
# After a run the loop rests for as long as the run computed, but no longer than this: it never takes more than half a
# CPU. Time in which a run waited for a CPU does not count: it would only delay the changes of a busy node.
LONGEST_REST_SECONDS = 1.0
# Somebody who waits for a change (a pod's start) ends the rest, unless the run computed for longer than this.
LONGEST_HURRIED_RUN_SECONDS = 0.1
# After a slice of the comparison the next one waits this many times as long as the slice took, and at least the pause:
# the comparison never takes more than a tenth of a CPU.
SLICE_REST = 9.0
SLICE_PAUSE_SECONDS = 0.01

# A run with little to do may keep the event loop for about this long. If the last run computed for longer, the next one
# goes to a thread again.
LONGEST_INLINE_SECONDS = 0.005

# Calls a blocking function in a worker thread and returns what it returns.
RunBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Stats:
    """What the loop did so far. Read it at any time from the event loop."""

    # Writes by table since the start, and of the first complete run (what a restart had to repair).
    writes: Counter[str] = field(default_factory=Counter)
    first_writes: Counter[str] | None = None
    runs: int = 0
    errors: int = 0
    # Errors since the last run without one, and the text of the newest ("" when there is none).
    failing: int = 0
    last_error: str = ""
    # Seconds that the last run took, and the clock's time() when the maps were last known to be right.
    last_duration: float = 0.0
    last_sync: float = 0.0
    # Entries that a resync found other than we had left them: somebody else changed our maps.
    drift: int = 0
    # Comparisons of all the maps that came to their end.
    compared: int = 0
    # Newest revision whose endpoints and policy are in force, and whose Services are too.
    policy_revision: int = -1
    # The newest revision whose policy is in force as far as there was room, and the writes that had none.
    fitting_revision: int = -1
    lacking: tuple[Write, ...] = ()
    # Writes that the last run did not make: what they are about is stale.
    stale: tuple[Write, ...] = ()
    service_revision: int = -1


@dataclass(frozen=True, slots=True)
class Job:
    """A run that has not begun. It returns its Outcome and raises nothing that the loop could survive. `small`: it has
    little to do, as far as can be known before."""

    run: Callable[[], Outcome]
    small: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One run that has ended. `members`: nn_member after a run that wrote the Services as far as there was room, None
    if it is not known. It must not be changed."""

    seconds: float
    failed: bool
    members: Mapping[Any, Any] | None = None


class ReconcileLoop:
    """Decides when runs and slices of the comparison take place. They never overlap.

    `take` is called in the event loop. It gives the next run, and None until every list is in: nothing is written
    before.
    """

    def __init__(
        self,
        take: Callable[[], Job | None],
        maps: Maps,
        clock: Clock | None = None,
        *,
        resync_seconds: float = 60.0,
        run_blocking: RunBlocking = asyncio.to_thread,
    ) -> None:
        self.stats = Stats()
        self._take = take
        self._maps = maps
        self._clock = clock or RealClock()
        self._resync_seconds = resync_seconds
        self._run_blocking = run_blocking
        self._wanted = asyncio.Event()
        self._progress = Pulse()
        self._hurry = asyncio.Event()
        # CPU seconds of the last run.
        self._computed = 0.0
        # Times of the clock's monotonic(): the end of the rest after a run, the next try after a failed run, and the
        # comparison's next slice.
        self._rested_at = 0.0
        self._retry_at = 0.0
        self._slice_at = 0.0

    def trigger(self) -> None:
        """Something changed. Cheap: any number of calls before the next run are one run."""
        self._wanted.set()

    async def wait_for(self, revision: int, concerns: Callable[[Write], bool] = lambda write: True) -> None:
        """Return when a Snapshot of at least this revision is in the kernel: endpoints, isolation and policy for
        certain, Services as far as they could be written. What has no room in a map is waited for if `concerns` says
        so of its write. Waits as long as it takes: the caller sets a limit."""
        stats = self.stats
        while stats.fitting_revision < revision or any(map(concerns, stats.lacking)):
            self._hurry.set()
            await self._progress.next().wait()

    async def run(self, ran: Callable[[Run], None]) -> None:
        """Run until cancelled. The first run waits for the first Snapshot, not for a trigger. `ran` is called in the
        event loop after each run."""
        self._wanted.set()
        next_resync = self._clock.monotonic() + self._resync_seconds
        while True:
            await self._clock.wait(self._wanted, self._idle_seconds(next_resync))
            if self._clock.monotonic() >= next_resync:
                next_resync = self._clock.monotonic() + self._resync_seconds
                self._maps.begin_comparison()
                self._slice_at = self._clock.monotonic()
            if self._wanted.is_set() or (self.stats.failing and self._clock.monotonic() >= self._retry_at):
                await self._rest()
                self._wanted.clear()
                job = self._take()
                if job is not None:
                    self._hurry.clear()
                    await self._once(job, ran)
            # After a run too: changes that never end must not keep the comparison from going on.
            if self._maps.comparing and self._clock.monotonic() >= self._slice_at:
                await self._compare()

    def _idle_seconds(self, next_resync: float) -> float:
        due = next_resync
        if self.stats.failing:
            due = min(due, self._retry_at)
        if self._maps.comparing:
            due = min(due, self._slice_at)
        return max(0.0, due - self._clock.monotonic())

    async def _rest(self) -> None:
        """Wait out what is left of the rest after the last run."""
        left = self._rested_at - self._clock.monotonic()
        if left > 0:
            hurried = self._computed <= LONGEST_HURRIED_RUN_SECONDS and not self.stats.failing
            # Set by whoever waits for more than that run brought.
            await self._clock.wait(self._hurry if hurried else asyncio.Event(), left)

    def _retry_seconds(self) -> float:
        return backoff.pause(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, self.stats.failing - 1)

    async def _once(self, job: Job, ran: Callable[[Run], None]) -> None:
        started = self._clock.monotonic()
        run = partial(self._timed, job)
        quick = self._computed <= LONGEST_INLINE_SECONDS and not self.stats.failing
        outcome = run() if job.small and quick else await self._in_thread(run)
        ended = self._clock.monotonic()
        seconds = ended - started
        self._rested_at = ended + min(self._computed, LONGEST_REST_SECONDS)
        self._account(outcome, seconds)
        ran(Run(seconds, bool(outcome.errors), outcome.members))
        self._progress.fire()

    def _timed(self, job: Job) -> Outcome:
        """In the thread of the run."""
        started = self._clock.cpu()
        outcome = job.run()
        self._computed = self._clock.cpu() - started
        return outcome

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        running = asyncio.ensure_future(self._run_blocking(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The thread cannot be stopped between two writes: no write is made after `run` has ended.
            await running
            raise

    async def _compare(self) -> None:
        """One slice."""
        started = self._clock.monotonic()
        differs = await self._in_thread(self._maps.compare_slice)
        now = self._clock.monotonic()
        self._slice_at = now + max(SLICE_PAUSE_SECONDS, SLICE_REST * (now - started))
        if not differs and not self._maps.comparing:
            self.stats.compared += 1
        if differs or not self._maps.comparing:
            # Repair; or say at the end of the comparison that the maps are right.
            self._wanted.set()

    def _account(self, outcome: Outcome, seconds: float) -> None:
        stats = self.stats
        stats.runs += 1
        stats.writes.update(outcome.writes)
        stats.last_duration = seconds
        if Group.SERVICES in outcome.groups:
            stats.service_revision = max(stats.service_revision, outcome.revision)
        if Group.POLICY in outcome.groups:
            stats.policy_revision = max(stats.policy_revision, outcome.revision)
            stats.fitting_revision, stats.lacking = max(stats.fitting_revision, outcome.revision), ()
        elif Group.POLICY in outcome.lacking:
            stats.fitting_revision = max(stats.fitting_revision, outcome.revision)
            stats.lacking = outcome.lacking[Group.POLICY]
        stats.stale = tuple(outcome.stale)
        if outcome.drift.total():
            stats.drift += outcome.drift.total()
            log.warning("resync: maps changed by somebody else, entries: %s", dict(+outcome.drift))
        for error in outcome.errors:
            stats.errors += 1
            stats.last_error = _text(error)
            log.error("maps not up to date: %s", stats.last_error, exc_info=_traceback(error))
        if outcome.errors:
            stats.failing += 1
            # What was written may have made room: try again at once, until a run writes nothing. `_rest` limits the
            # CPU time.
            pause = 0.0 if outcome.progressed else self._retry_seconds()
            self._retry_at = self._clock.monotonic() + pause
        else:
            self._account_success()

    def _account_success(self) -> None:
        stats = self.stats
        if stats.failing:
            log.info("maps up to date again after %d failed runs", stats.failing)
        stats.failing, stats.last_error = 0, ""
        stats.last_sync = self._clock.time()
        if stats.first_writes is None:
            stats.first_writes = stats.writes.copy()


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, NodenetError) else f"{type(error).__name__}: {error}"


def _traceback(error: Exception) -> Exception | None:
    """A traceback for what nobody foresaw."""
    return None if isinstance(error, NodenetError | OverflowError) else error
