"""Tracks the content of the kernel's maps: reads it, writes differences, and compares it in slices."""

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


# Each group is planned and written separately, in this order.
_PLANS: Mapping[Group, Callable[[Tables, Tables], list[Write]]] = {
    Group.SERVICES: plan_services,
    Group.POLICY: plan_policy,
}


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
    # All writes that were not made.
    stale: list[Write] = field(default_factory=list)

    @property
    def progressed(self) -> bool:
        """True if something other than nn_state was written, which every attempt writes."""
        return any(count for table, count in self.writes.items() if table != "nn_state")


class Maps:
    """The only writer of the compiled maps. `tables` has a Table for every name in TABLES.

    All methods block. No two of them may run at the same time.
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables
        self._held: dict[str, Mapping[Any, Any]] = {}
        self._unread: set[str] = set(TABLES)
        # Tables whose last write failed. It is unknown whether that write was made.
        self._doubtful: set[str] = set()
        self._comparison = Comparison(tables)

    @property
    def held(self) -> Tables:
        """The content after the last run. Empty before the first `read`."""
        return self._held

    def read(self, outcome: Outcome) -> None:
        """Read the tables whose content is unknown. Raises ApplyError that names the table."""
        found = read(self._tables, sorted(self._unread))
        known = {name: self._held[name] for name in found if name in self._held and name not in self._doubtful}
        outcome.drift.update({name: differences(found[name], table) for name, table in known.items()})
        self._held.update(found)
        self._comparison.skip(found)
        self._unread.clear()
        self._doubtful.clear()

    def write(self, wanted: Tables, outcome: Outcome) -> None:
        """Write the differences to `wanted`: first Services, then policy. An error in one group does not stop the
        other. Errors are added to `outcome`."""
        for group in _PLANS:
            try:
                self._write_group(group, wanted, outcome)
            except ApplyError as error:
                outcome.errors.append(error)
                outcome.stale.extend(error.left)
                # If the error is only a full map, we know what was written. After any other error we do not.
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

    def _write_group(self, group: Group, wanted: Tables, outcome: Outcome) -> None:
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
                # After a complete write, `wanted` replaces the draft below. After a partial one, copy the draft to a
                # dict: otherwise each failed run would put another draft on top, without limit.
                self._held.update({name: dict(drafts[name]) for name in drafts if not made or name not in wanted})
        # The content is equal now. Keep the same object, so that the next plan need not compare it.
        self._held.update({name: wanted[name] for name in members(group) if name in wanted})

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
        other tables may have changed too, and the plan's order of writes is right only if it knows the content of
        all."""
        self._comparison.skip(self._unread)
        try:
            suspect = self._comparison.step(self._held) is not None
        except ApplyError as error:
            log.warning("resync: %s; all maps are read again", error)
            suspect = True
        if suspect:
            self._unread.update(TABLES)
        return suspect
