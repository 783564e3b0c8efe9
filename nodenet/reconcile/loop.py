"""Keeps the kernel's maps at what the newest Snapshot asks for: coalesces triggers, retries, compares now and then.

Two groups are brought up to date apart, Services first and then policy, so that trouble with one (a full map, say) does
not hold up the other. Reading, compiling and writing run in a worker thread: the event loop goes on meanwhile.

The regular comparison (resync) goes on in slices between the runs. After a difference the next run reads all maps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nodenet import backoff
from nodenet.compile.state import DesiredState
from nodenet.errors import NodenetError
from nodenet.evolved import Draft
from nodenet.reconcile.apply import ApplyError, FullError, Table, apply, read
from nodenet.reconcile.clock import Clock, RealClock
from nodenet.reconcile.comparison import Comparison
from nodenet.reconcile.plan import POLICY_TABLES, SERVICE_TABLES, Tables, Write, differences, plan_policy, plan_services
from nodenet.store import Snapshot

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 30.0
# After a run the loop rests for as long as the run took, but no longer than this: it never takes more than half a CPU.
LONGEST_REST_SECONDS = 1.0
# Somebody who waits for a change (a pod's start) ends the rest, unless the run took longer than this.
LONGEST_HURRIED_RUN_SECONDS = 0.1
# After a slice of the comparison the next one waits this many times as long as the slice took, and at least the pause:
# the comparison never takes more than a tenth of a CPU.
SLICE_REST = 9.0
SLICE_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the owner of the compiler and of the names wants to hear.

    In the worker thread: `restore`, what the maps hold, before the first compilation; `settled`, all writes of the last
    one are made. In the event loop: `members`, what nn_member holds after a run that wrote the Services as far as there
    was room; `ran`, how many seconds a run took and whether anything failed.
    """

    restore: Callable[[Tables], None] = lambda tables: None
    settled: Callable[[], None] = lambda: None
    members: Callable[[Mapping[Any, Any]], None] = lambda members: None
    ran: Callable[[float, bool], None] = lambda seconds, failed: None


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
    service_revision: int = -1


@dataclass(frozen=True, slots=True)
class _Group:
    tables: tuple[str, ...]
    plan: Callable[[Tables, Tables], list[Write]]


_SERVICES = _Group(SERVICE_TABLES, plan_services)
_POLICY = _Group(POLICY_TABLES, plan_policy)


class ReconcileLoop:
    """One writer for all the maps that are compiled.

    `snapshot_fn` runs in the event loop and gives None until every list is in: nothing is written before. `compile_fn`
    runs in the worker thread. `tables` holds a Table for every name of plan.SERVICE_TABLES and plan.POLICY_TABLES.
    """

    def __init__(
        self,
        snapshot_fn: Callable[[], Snapshot | None],
        compile_fn: Callable[[Snapshot], DesiredState],
        tables: Mapping[str, Table],
        clock: Clock | None = None,
        *,
        hooks: Hooks | None = None,
        resync_seconds: float = 60.0,
        run_blocking: Callable[[Callable[[], None]], Awaitable[None]] = asyncio.to_thread,
    ) -> None:
        self.stats = Stats()
        self._snapshot_fn = snapshot_fn
        self._compile_fn = compile_fn
        self._tables = tables
        self._clock = clock or RealClock()
        self._hooks = hooks or Hooks()
        self._resync_seconds = resync_seconds
        self._run_blocking = run_blocking
        self._wanted = asyncio.Event()
        self._progress = asyncio.Event()
        self._hurry = asyncio.Event()
        self._held: dict[str, Mapping[Any, Any]] = {}
        self._unread: set[str] = {*SERVICE_TABLES, *POLICY_TABLES}
        # Tables whose last write failed: it may or may not have been made.
        self._doubtful: set[str] = set()
        self._restored = False
        self._comparison = Comparison(tables)
        # Times of the clock's monotonic(): the next try after a failed run, and the comparison's next slice.
        self._retry_at = 0.0
        self._slice_at = 0.0

    def trigger(self) -> None:
        """Something changed. Cheap: any number of calls before the next run are one run."""
        self._wanted.set()

    async def wait_for(self, revision: int) -> None:
        """Return when a Snapshot of at least this revision is in the kernel: endpoints, isolation and policy for
        certain, Services as far as they could be written. Waits as long as it takes: the caller sets a limit."""
        while self.stats.policy_revision < revision:
            self._hurry.set()
            await self._progress.wait()

    async def run(self) -> None:
        """Run until cancelled. The first run waits for the first Snapshot, not for a trigger."""
        self._wanted.set()
        next_resync = self._clock.monotonic() + self._resync_seconds
        while True:
            await self._clock.wait(self._wanted, self._idle_seconds(next_resync))
            if self._clock.monotonic() >= next_resync:
                next_resync = self._clock.monotonic() + self._resync_seconds
                self._begin_comparison()
            snapshot = self._snapshot_fn()
            if self._wanted.is_set() or (self.stats.failing and self._clock.monotonic() >= self._retry_at):
                self._wanted.clear()
                if snapshot is not None:
                    self._hurry.clear()
                    await self._once(snapshot)
                    await self._rest()
            # After a run too: changes that never end must not keep the comparison from going on.
            if self._comparison.under_way and self._clock.monotonic() >= self._slice_at:
                await self._compare()

    def _idle_seconds(self, next_resync: float) -> float:
        due = next_resync
        if self.stats.failing:
            due = min(due, self._retry_at)
        if self._comparison.under_way:
            due = min(due, self._slice_at)
        return max(0.0, due - self._clock.monotonic())

    async def _rest(self) -> None:
        # Set by whoever waits for more than that run brought.
        took = self.stats.last_duration
        sooner = self._hurry if took <= LONGEST_HURRIED_RUN_SECONDS and not self.stats.failing else asyncio.Event()
        await self._clock.wait(sooner, min(took, LONGEST_REST_SECONDS))

    def _retry_seconds(self) -> float:
        return backoff.pause(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, self.stats.failing - 1)

    async def _once(self, snapshot: Snapshot) -> None:
        started = self._clock.monotonic()
        outcome = _Outcome()
        await self._in_thread(lambda: self._reconcile(snapshot, outcome))
        self._account(snapshot.revision, outcome, started)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        running = asyncio.ensure_future(self._run_blocking(work))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # The thread cannot be stopped between two writes: no write is made after `run` has ended.
            await running
            raise

    def _begin_comparison(self) -> None:
        # Before the first run nothing is held; what is unread is read whole by the next run.
        if self._restored:
            self._comparison.begin((*SERVICE_TABLES, *POLICY_TABLES))
            self._slice_at = self._clock.monotonic()

    async def _compare(self) -> None:
        """One slice. When a table differs, or cannot be read, the next run reads all of them: the order of the writes
        that repair is right only if the plan knows what every table holds. Others may have been changed too."""
        started = self._clock.monotonic()
        suspects: list[str] = []
        await self._in_thread(lambda: self._compare_slice(suspects))
        if suspects:
            self._unread.update((*SERVICE_TABLES, *POLICY_TABLES))
        now = self._clock.monotonic()
        self._slice_at = now + max(SLICE_PAUSE_SECONDS, SLICE_REST * (now - started))
        if not suspects and not self._comparison.under_way:
            self.stats.compared += 1
        if suspects or not self._comparison.under_way:
            # Repair; or say at the end of the comparison that the maps are right.
            self._wanted.set()

    def _compare_slice(self, suspects: list[str]) -> None:
        """In the worker thread."""
        self._comparison.skip(self._unread)
        try:
            found = self._comparison.step(self._held)
        except ApplyError as error:
            log.warning("resync: %s; all maps are read again", error)
            found = error.table
        if found is not None:
            suspects.append(found)

    def _reconcile(self, snapshot: Snapshot, outcome: _Outcome) -> None:
        """In the worker thread."""
        try:
            self._read_again(outcome)
            desired = self._compile_fn(snapshot)
        except Exception as error:  # noqa: BLE001 a fault in the compiler must not end what the kernel does already
            outcome.failed(error)
            return
        for group in (_SERVICES, _POLICY):
            try:
                self._bring(group, desired.tables, outcome)
            except ApplyError as error:
                outcome.failed(error)
                if not isinstance(error, FullError):
                    self._unread.add(error.table)
                    self._doubtful.add(error.table)
            else:
                outcome.groups.append(group)
            if group is _SERVICES and "nn_member" not in self._unread:
                outcome.members = self._held["nn_member"]
        if not outcome.errors:
            self._hooks.settled()

    def _read_again(self, outcome: _Outcome) -> None:
        found = read(self._tables, sorted(self._unread))
        known = {name: self._held[name] for name in found if name in self._held and name not in self._doubtful}
        outcome.drift.update({name: differences(found[name], table) for name, table in known.items()})
        self._held.update(found)
        self._comparison.skip(found)
        self._unread.clear()
        self._doubtful.clear()
        if not self._restored:
            self._hooks.restore(self._held)
            self._restored = True

    def _bring(self, group: _Group, wanted: Tables, outcome: _Outcome) -> None:
        writes = group.plan(wanted, self._held)
        if writes:
            self._comparison.wrote(writes)
            drafts = {name: Draft(self._held[name]) for name in {write.table for write in writes}}
            held: dict[str, Any] = {**self._held, **drafts}
            made = False
            try:
                apply(writes, self._tables, held, outcome.writes)
                made = True
            finally:
                # What was reached takes the place of its draft below. Written only in part: a dict of its own, because
                # a draft over a draft for each failed run would grow without end.
                self._held.update({name: dict(drafts[name]) for name in drafts if not made or name not in wanted})
        # Equal now: the same object, so that the next plan sees it without comparing.
        self._held.update({name: wanted[name] for name in group.tables if name in wanted})

    def _account(self, revision: int, outcome: _Outcome, started: float) -> None:
        stats = self.stats
        stats.runs += 1
        stats.writes.update(outcome.writes)
        stats.last_duration = self._clock.monotonic() - started
        if _SERVICES in outcome.groups:
            stats.service_revision = max(stats.service_revision, revision)
        if _POLICY in outcome.groups:
            stats.policy_revision = max(stats.policy_revision, revision)
        if outcome.drift.total():
            stats.drift += outcome.drift.total()
            log.warning("resync: maps changed by somebody else, entries: %s", dict(+outcome.drift))
        if outcome.members is not None:
            self._hooks.members(outcome.members)
        for error in outcome.errors:
            stats.errors += 1
            stats.last_error = _text(error)
            log.error("maps not up to date: %s", stats.last_error, exc_info=_traceback(error))
        if outcome.errors:
            stats.failing += 1
            self._retry_at = self._clock.monotonic() + self._retry_seconds()
        else:
            self._account_success(outcome)
        self._hooks.ran(stats.last_duration, bool(outcome.errors))
        self._progress.set()
        self._progress.clear()

    def _account_success(self, outcome: _Outcome) -> None:
        stats = self.stats
        if stats.failing:
            log.info("maps up to date again after %d failed runs", stats.failing)
        stats.failing, stats.last_error = 0, ""
        stats.last_sync = self._clock.time()
        if stats.first_writes is None:
            stats.first_writes = stats.writes.copy()


@dataclass(slots=True)
class _Outcome:
    """What one run did, handed from the worker thread to the event loop."""

    writes: Counter[str] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)
    groups: list[_Group] = field(default_factory=list)
    # nn_member after the writes. A later run changes a copy.
    members: Mapping[Any, Any] | None = None
    errors: list[Exception] = field(default_factory=list)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, NodenetError) else f"{type(error).__name__}: {error}"


def _traceback(error: Exception) -> Exception | None:
    """A traceback for what nobody foresaw."""
    return None if isinstance(error, NodenetError | OverflowError) else error
