"""What the kernel's maps hold, as far as we know it: read, brought up to date, and compared in slices."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nodenet.evolved import Draft
from nodenet.reconcile.apply import ApplyError, FullError, Table, apply, read
from nodenet.reconcile.comparison import Comparison
from nodenet.reconcile.plan import POLICY_TABLES, SERVICE_TABLES, Tables, Write, differences, plan_policy, plan_services
from nodenet.tables import Group, members

log = logging.getLogger(__name__)

TABLES = (*SERVICE_TABLES, *POLICY_TABLES)


# Each group is planned and written by itself, in this order.
_PLANS: Mapping[Group, Callable[[Tables, Tables], list[Write]]] = {
    Group.SERVICES: plan_services,
    Group.POLICY: plan_policy,
}


@dataclass(slots=True)
class Outcome:
    """What one run did. The worker thread fills it; the event loop reads it afterwards."""

    # Of the Snapshot that was compiled.
    revision: int
    writes: Counter[str] = field(default_factory=Counter)
    # Entries by table that were not as we had left them.
    drift: Counter[str] = field(default_factory=Counter)
    # Groups that were written to their end.
    groups: list[Group] = field(default_factory=list)
    # nn_member after the writes, None if it is not known. Later runs change a copy.
    members: Mapping[Any, Any] | None = None
    errors: list[Exception] = field(default_factory=list)
    # Writes that were not made, by group, where it is known that all others were.
    lacking: dict[Group, tuple[Write, ...]] = field(default_factory=dict)
    # Every write that was not made.
    stale: list[Write] = field(default_factory=list)

    @property
    def progressed(self) -> bool:
        """Whether something was written beside nn_state, which frames every try."""
        return any(count for table, count in self.writes.items() if table != "nn_state")


class Maps:
    """One writer for the maps that are compiled. `tables` holds a Table for every name in TABLES.

    Every method blocks. No two of them may run at the same time.
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables
        self._held: dict[str, Mapping[Any, Any]] = {}
        self._unread: set[str] = set(TABLES)
        # Tables whose last write failed: it may or may not have been made.
        self._doubtful: set[str] = set()
        self._comparison = Comparison(tables)

    @property
    def held(self) -> Tables:
        """The content after the last run. Empty before the first `read`."""
        return self._held

    def read(self, outcome: Outcome) -> None:
        """Read the tables whose content is not known. Raises ApplyError that names the table."""
        found = read(self._tables, sorted(self._unread))
        known = {name: self._held[name] for name in found if name in self._held and name not in self._doubtful}
        outcome.drift.update({name: differences(found[name], table) for name, table in known.items()})
        self._held.update(found)
        self._comparison.skip(found)
        self._unread.clear()
        self._doubtful.clear()

    def bring(self, wanted: Tables, outcome: Outcome) -> None:
        """Write the difference. Services come first, then policy: an error in one group does not stop the other. Errors
        are added to `outcome`."""
        for group in _PLANS:
            try:
                self._bring_group(group, wanted, outcome)
            except ApplyError as error:
                outcome.errors.append(error)
                # After a full map it is known what was written; after any other error it is not.
                outcome.stale.extend(error.left)
                if isinstance(error, FullError):
                    outcome.lacking[group] = error.left
                else:
                    self._unread.add(error.table)
                    self._doubtful.add(error.table)
            else:
                outcome.groups.append(group)
                outcome.lacking[group] = ()
            if group is Group.SERVICES and "nn_member" not in self._unread:
                outcome.members = self._held["nn_member"]

    def _bring_group(self, group: Group, wanted: Tables, outcome: Outcome) -> None:
        writes = _PLANS[group](wanted, self._held)
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
        self._held.update({name: wanted[name] for name in members(group) if name in wanted})

    @property
    def known(self) -> bool:
        """Whether the content of every table is known: the next run reads none."""
        return not self._unread

    @property
    def comparing(self) -> bool:
        """Whether a comparison has slices left."""
        return self._comparison.under_way

    def begin_comparison(self) -> None:
        """Start a comparison of all tables. Before the first run there is nothing to compare with."""
        if self._held:
            self._comparison.begin(TABLES)

    def compare_slice(self) -> bool:
        """Whether a table differs, or cannot be read. The next run then reads all of them: the order of the writes that
        repair is right only if the plan knows what every table holds. Others may have been changed too."""
        self._comparison.skip(self._unread)
        try:
            suspect = self._comparison.step(self._held) is not None
        except ApplyError as error:
            log.warning("resync: %s; all maps are read again", error)
            suspect = True
        if suspect:
            self._unread.update(TABLES)
        return suspect
