"""Decides when to update the kernel's maps: merges triggers, retries, and compares regularly.

Runs happen in a worker thread, so that the event loop is not blocked. Small runs happen in the event loop, because the
switch to a thread and back costs as much as they do. The regular comparison (resync) runs in slices between the runs.
If it finds a difference, the next run reads all maps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

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
# After a run the loop rests for as long as the run computed, but at most this long. So it usually takes at most half a
# CPU. Only CPU time counts: to add the time that a run waited for a CPU would only delay changes on a busy node.
LONGEST_REST_SECONDS = 1.0
# A task that waits for a change (a pod's start) ends the rest, unless the run computed for longer than this.
LONGEST_HURRIED_RUN_SECONDS = 0.1
# The pause after a slice of the comparison is this many times as long as the slice, and at least SLICE_PAUSE_SECONDS.
# So the comparison takes at most a tenth of a CPU.
SLICE_REST = 9.0
SLICE_PAUSE_SECONDS = 0.01

# A small run may block the event loop for about this long. If the last run computed for longer, the next one runs in a
# thread.
LONGEST_INLINE_SECONDS = 0.005

# Calls a blocking function in a worker thread and returns what it returns.
RunBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Stats:
    """Statistics of the loop. Read them in the event loop."""

    # Writes by table since the start, and up to the first complete run (what a restart had to repair).
    writes: Counter[str] = field(default_factory=Counter)
    first_writes: Counter[str] | None = None
    runs: int = 0
    errors: int = 0
    # Failed runs since the last run without an error, and the text of the newest error ("" if there is none).
    failing: int = 0
    last_error: str = ""
    # Seconds that the last run took, and the clock's time() when the maps were last known to be right.
    last_duration: float = 0.0
    last_sync: float = 0.0
    # Entries that a resync found changed by another program.
    drift: int = 0
    # Number of complete comparisons of all maps.
    compared: int = 0
    # The newest revision whose endpoints and policy are completely in force.
    policy_revision: int = -1
    # The newest revision whose policy is in force except for the writes that did not fit, and these writes.
    fitting_revision: int = -1
    lacking: tuple[Write, ...] = ()
    # The writes that the last run did not make. Their objects are stale in the kernel.
    stale: tuple[Write, ...] = ()
    # The newest revision whose Services are completely in force.
    service_revision: int = -1


class Job(NamedTuple):
    """A run that has not started. `run` returns its Outcome and reports errors there. `small`: it probably has little
    to do."""

    run: Callable[[], Outcome]
    small: bool


class Run(NamedTuple):
    """One finished run. `members`: the content of nn_member after the run, None if it is unknown. It must not be
    changed. `services`: all Services are in force. `full`: the run read maps first."""

    seconds: float
    failed: bool
    members: Mapping[Any, Any] | None = None
    services: bool = False
    full: bool = False


class ReconcileLoop:
    """Updates the maps in runs, and compares them in slices. A run and a slice never overlap.

    `take` is called in the event loop and returns the next run. It returns None until all lists have arrived; no map is
    written before that.
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
        # A change was reported. `_wake` ends the wait for it, or for the next time at which there is something to do.
        self._wanted = False
        self._wake = asyncio.Event()
        self._set_alarm = self._clock.alarm(self._wake)
        self._progress = Pulse()
        self._hurry = asyncio.Event()
        # CPU seconds of the last run.
        self._computed = 0.0
        # Times of the clock's monotonic(): the end of the rest after a run, the retry after a failed run, and the next
        # slice of the comparison.
        self._rested_at = 0.0
        self._retry_at = 0.0
        self._slice_at = 0.0

    def trigger(self) -> None:
        """Report a change. Cheap: all calls before the next run cause only one run."""
        self._wanted = True
        self._wake.set()

    async def wait_for(self, revision: int, concerns: Callable[[Write], bool] = lambda write: True) -> None:
        """Wait until a Snapshot of at least this revision is in the kernel: endpoints, isolation and policy completely,
        Services as far as possible. A write that does not fit into a map is waited for only if `concerns` returns True
        for it. There is no time limit; the caller sets one."""
        stats = self.stats
        while stats.fitting_revision < revision or any(map(concerns, stats.lacking)):
            self._hurry.set()
            await self._progress.next().wait()

    async def run(self, ran: Callable[[Run], None]) -> None:
        """Run until cancelled. The first run needs no trigger. `ran` is called in the event loop after each run."""
        self._wanted = True
        next_resync = self._clock.monotonic() + self._resync_seconds
        while True:
            await self._until_due(next_resync)
            if self._clock.monotonic() >= next_resync:
                next_resync = self._clock.monotonic() + self._resync_seconds
                self._maps.begin_comparison()
                self._slice_at = self._clock.monotonic()
            if self._wanted or (self.stats.failing and self._clock.monotonic() >= self._retry_at):
                await self._rest()
                self._wanted = False
                job = self._take()
                if job is not None:
                    self._hurry.clear()
                    await self._once(job, ran)
            # Also after a run, so that the comparison progresses even if changes arrive all the time.
            if self._maps.comparing and self._clock.monotonic() >= self._slice_at:
                await self._compare()

    async def _until_due(self, next_resync: float) -> None:
        """Wait until there is something to do."""
        while not self._wanted and (left := self._idle_seconds(next_resync)) > 0:
            self._wake.clear()
            self._set_alarm(left)
            await self._wake.wait()

    def _idle_seconds(self, next_resync: float) -> float:
        due = next_resync
        if self.stats.failing:
            due = min(due, self._retry_at)
        if self._maps.comparing:
            due = min(due, self._slice_at)
        return max(0.0, due - self._clock.monotonic())

    async def _rest(self) -> None:
        """Wait until the rest after the last run is over."""
        left = self._rested_at - self._clock.monotonic()
        if left > 0:
            hurried = self._computed <= LONGEST_HURRIED_RUN_SECONDS and not self.stats.failing
            # `wait_for` sets it if it waits for a newer revision.
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
        services = Group.SERVICES in outcome.groups
        ran(Run(seconds, bool(outcome.errors), outcome.members, services, outcome.full))
        self._progress.fire()

    def _timed(self, job: Job) -> Outcome:
        """Do a run and measure its CPU time. Runs in the thread of the run."""
        started = self._clock.cpu()
        outcome = job.run()
        self._computed = self._clock.cpu() - started
        return outcome

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        running = asyncio.ensure_future(self._run_blocking(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The thread cannot be cancelled. Wait for it, so that no write happens after `run` has ended.
            await running
            raise

    async def _compare(self) -> None:
        """Compare one slice."""
        started = self._clock.monotonic()
        differs = await self._in_thread(self._maps.compare_slice)
        now = self._clock.monotonic()
        self._slice_at = now + max(SLICE_PAUSE_SECONDS, SLICE_REST * (now - started))
        if not differs and not self._maps.comparing:
            self.stats.compared += 1
        if differs or not self._maps.comparing:
            # After a difference the run repairs it. After a complete comparison the run confirms that the maps are
            # right (last_sync).
            self._wanted = True

    def _account(self, outcome: Outcome, seconds: float) -> None:
        stats = self.stats
        stats.runs += 1
        # Counter.update costs more than the rest of this method, because it checks the type of its argument.
        for table, count in outcome.writes.items():
            stats.writes[table] += count
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
            log.warning("resync: another program changed maps, entries: %s", dict(+outcome.drift))
        for error in outcome.errors:
            stats.errors += 1
            stats.last_error = _text(error)
            log.error("maps not up to date: %s", stats.last_error, exc_info=_traceback(error))
        if outcome.errors:
            stats.failing += 1
            # The writes may have made room, so retry at once until a run writes nothing. `_rest` limits the CPU time.
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
    """The error, if its traceback must be logged: only for errors that are not expected."""
    return None if isinstance(error, NodenetError | OverflowError) else error
