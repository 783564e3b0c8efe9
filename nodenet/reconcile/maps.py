"""Tracks the content of the kernel's maps: reads it, writes differences, and compares it in slices."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nodenet.abi import State
from nodenet.evolved import Draft
from nodenet.reconcile.apply import ApplyError, FullError, Table, apply, read
from nodenet.reconcile.commit import Committer, InForce
from nodenet.reconcile.comparison import Comparison
from nodenet.reconcile.grace import Grace
from nodenet.reconcile.plan import SERVICE_TABLES, Tables, Write, differences, plan_services, replaced
from nodenet.reconcile.switch import POLICY_TABLES, STATE_KEY, SWITCHED, TRIES, plan_policy, prefix_lengths
from nodenet.tables import Group, members

log = logging.getLogger(__name__)

TABLES = (*SERVICE_TABLES, *POLICY_TABLES)


@dataclass(slots=True)
class Outcome:
    """The result of one run. The worker thread fills it; the event loop reads it afterwards."""

    # The revision of the Snapshot that was compiled.
    revision: int
    writes: Counter[str] = field(default_factory=Counter)
    # Numbers of entries that another program has changed, by table.
    drift: Counter[str] = field(default_factory=Counter)
    # Groups that were written completely.
    groups: list[Group] = field(default_factory=list)
    # The content of nn_member after the writes, None if it is unknown. Later runs do not change this object.
    members: Mapping[Any, Any] | None = None
    errors: list[Exception] = field(default_factory=list)
    # The writes that were not made, for groups in which all other writes are known to be made.
    lacking: dict[Group, tuple[Write, ...]] = field(default_factory=dict)
    # Maps were read before the run compared: it is no small difference.
    full: bool = False
    # All writes that were not made.
    stale: list[Write] = field(default_factory=list)

    @property
    def progressed(self) -> bool:
        """True if something other than nn_state was written, which every attempt writes."""
        return any(count for table, count in self.writes.items() if table != "nn_state")


class Maps:
    """The only writer of the compiled maps. `tables` has a Table for every name in TABLES; `grace` waits for the
    programs that read them.

    All methods block. No two of them may run at the same time.
    """

    def __init__(self, tables: Mapping[str, Table], grace: Grace) -> None:
        self._tables = tables
        self._held: dict[str, Mapping[Any, Any]] = {}
        self._unread: set[str] = set(TABLES)
        # Tables whose last write failed. It is unknown whether that write was made.
        self._doubtful: set[str] = set()
        self._committer = Committer(tables, grace)
        in_force = {name: InForce(name, tables[name], self._committer) for name in SWITCHED}
        self._comparison = Comparison({**tables, **in_force})
        # The prefix lengths that occur, and perhaps some that occurred earlier.
        self._lengths: dict[str, set[int]] = {}
        # Each group is planned and written separately, in this order.
        self._writers: Mapping[Group, Callable[[Tables, Counter[str]], None]] = {
            Group.SERVICES: self._write_services,
            Group.POLICY: self._write_policy,
        }

    @property
    def held(self) -> Tables:
        """The content after the last run: of policy, what is in force. Empty before the first `read`."""
        return self._held

    def read(self, outcome: Outcome) -> None:
        """Read the tables whose content is unknown. Raises ApplyError that names the table."""
        outcome.full = True
        found = read(self._tables, sorted(self._unread))
        raw = {name: found[name] for name in SWITCHED if name in found}
        if raw:
            state = found.get("nn_state", self._held.get("nn_state", {})).get(STATE_KEY, State(0, 0))
            found.update(self._committer.decode(raw, state))
            self._lengths.update({name: prefix_lengths(found[name]) for name in TRIES if name in raw})
        known = {name: self._held[name] for name in found if name in self._held and name not in self._doubtful}
        outcome.drift.update({name: differences(found[name], table) for name, table in known.items()})
        self._held.update(found)
        self._comparison.skip(found)
        self._unread.clear()
        self._doubtful.clear()

    def write(self, wanted: Tables, outcome: Outcome) -> None:
        """Write the differences to `wanted`: first Services, then policy. An error in one group does not stop the
        other. Errors are added to `outcome`."""
        for group, write in self._writers.items():
            try:
                write(wanted, outcome.writes)
            except ApplyError as error:
                outcome.errors.append(error)
                outcome.stale.extend(error.left)
                # If the error is only a full map, we know what was written. After any other error we do not.
                if isinstance(error, FullError):
                    outcome.lacking[group] = error.left
                else:
                    # What is in force of a table follows from nn_state: read all tables of policy together.
                    unknown = POLICY_TABLES if group is Group.POLICY else (error.table,)
                    self._unread.update(unknown)
                    self._doubtful.update(unknown)
            else:
                outcome.groups.append(group)
                outcome.lacking[group] = ()
            if group is Group.SERVICES and "nn_member" not in self._unread:
                outcome.members = self._held["nn_member"]

    def _write_services(self, wanted: Tables, done: Counter[str]) -> None:
        writes = plan_services(wanted, self._held)
        if writes:
            self._comparison.wrote(writes)
            with self._drafts({write.table for write in writes}, wanted) as held:
                apply(writes, self._tables, held, done)
        self._adopt(Group.SERVICES, wanted)

    def _write_policy(self, wanted: Tables, done: Counter[str]) -> None:
        self._committer.settle(done)
        change = plan_policy(wanted, self._held, self._lengths)
        if change is not None:
            self._comparison.wrote(Write(*place) for place in self._committer.went())
            self._comparison.wrote(change.entries)
            self._lengths.update(change.lengths)
            with self._drafts({"nn_state", *(entry.table for entry in change.entries)}, wanted) as held:
                self._committer.commit(change, held, done)
        self._adopt(Group.POLICY, wanted)

    @contextmanager
    def _drafts(self, names: Collection[str], wanted: Tables) -> Iterator[Mapping[str, Any]]:
        """These tables as drafts that become the known content, and all others."""
        drafts = {name: Draft(self._held[name]) for name in names}
        made = False
        try:
            yield {**self._held, **drafts}
            made = True
        finally:
            # After a complete write, `wanted` replaces the draft. After a partial one, copy the draft to a dict:
            # otherwise each failed run would put another draft on top, without limit.
            self._held.update({name: dict(drafts[name]) for name in drafts if not made or name not in wanted})

    def _adopt(self, group: Group, wanted: Tables) -> None:
        """The content is equal now. Keep the same object, so that the next plan need not compare it."""
        for name in replaced(members(group), wanted, self._held):
            if name in wanted:
                self._held[name] = wanted[name]

    @property
    def known(self) -> bool:
        """True if the content of all tables is known, so that the next run reads none."""
        return not self._unread

    @property
    def comparing(self) -> bool:
        """True if a comparison has slices left."""
        return self._comparison.under_way

    def begin_comparison(self) -> None:
        """Start a comparison of all tables. Does nothing before the first run, when there is nothing to compare
        with."""
        if self._held:
            self._comparison.begin(TABLES)

    def compare_slice(self) -> bool:
        """Compare one slice. Returns True if a table differs or cannot be read. The next run then reads all tables:
        other tables may have changed too, and a plan is right only if it knows the content of all."""
        self._comparison.skip(self._unread)
        try:
            suspect = self._comparison.step(self._held) is not None
        except ApplyError as error:
            log.warning("resync: %s; all maps are read again", error)
            suspect = True
        if suspect:
            self._unread.update(TABLES)
        return suspect
