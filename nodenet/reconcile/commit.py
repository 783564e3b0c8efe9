"""Writes a change of policy: its entries, then the switch, then the deletes.

Before a switch nothing of the change is in force, so a failure or a crash leaves the previous policy whole. The next
change first undoes what is left of it. The exception is a map without room: what is deleted before the switch, to make
room, is missing at once. Deletes, and the entries of the next change, wait until no program uses the previous
generation any more.

A full map does not stop a change. Entries that do not fit are left out, closed: an allow that is missing allows
nothing, an address without an entry counts as the world, an endpoint without an entry has no network. If a region does
not fit, all regions stay as they are: a region's number stands for one set of addresses, so rules for other sets do not
apply to it. A deny or pass that does not fit stops the change. So does an address or a region if an endpoint has
denies: without it a deny does not match its packets, but an allow for every peer does. The compiler leaves room for all
of them (compile/shares.py, compile/address_room.py), so this happens only when a map is smaller than it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from threading import Lock
from typing import Any

from nodenet.abi import Action, EndpointEntry, EndpointFlag, Rule, State
from nodenet.abi.versions import is_in_force
from nodenet.errors import NodenetError
from nodenet.reconcile.apply import ApplyError, FullError, Table, is_full
from nodenet.reconcile.grace import Grace
from nodenet.reconcile.plan import Write
from nodenet.reconcile.switch import STATE_KEY, VERSIONS, Change, Entry

Held = Mapping[str, MutableMapping[Any, Any]]
Place = tuple[str, Any]

_FAILURES = (OSError, NodenetError)
_NOT_IN_FORCE = "nothing of the change is in force"
_TIERED = EndpointFlag.TIERED_INGRESS | EndpointFlag.TIERED_EGRESS
# Which peer an address is.
_PEERS = ("nn_ipcache", "nn_cidr")


class Committer:
    """The writer of the tables in SWITCHED and of nn_state. All methods block; no two of them may run at the same
    time, and `Grace` may call `_delete_gone` meanwhile."""

    def __init__(self, tables: Mapping[str, Table], grace: Grace) -> None:
        self._tables = tables
        self._grace = grace
        self._lock = Lock()
        # Entries that are not in force any more, and wait for their deletion.
        self._gone: dict[Place, None] = {}
        # All entries that went since the last change began. A reader may have copied them from the kernel before they
        # were deleted.
        self._went: set[Place] = set()
        # Entries of a change that was not finished, and the values that undo it.
        self._unfinished: dict[Place, Any] = {}
        # Deletes that no run has counted yet.
        self._deleted: Counter[str] = Counter()
        # Something is left of an earlier change that does not go away by itself.
        self._must_repair = False
        # The generation in force, as far as we know.
        self.generation = 0

    def decode(self, raw: Mapping[str, Mapping[Any, Any]], state: State) -> dict[str, dict[Any, Any]]:
        """What is in force of tables that were read whole, by table. What else they contain is removed by the next
        `commit` or `settle`."""
        self._grace.begin(_nothing)
        self.generation = state.generation
        with self._lock:
            held = {name: self._decode(name, entries, state.generation) for name, entries in raw.items()}
            self._must_repair = bool(self._gone or self._unfinished)
        return held

    def _decode(self, name: str, entries: Mapping[Any, Any], generation: int) -> dict[Any, Any]:
        held = {}
        for places in (self._gone, self._unfinished):
            for place in [place for place in places if place[0] == name]:
                del places[place]
        for key, value in entries.items():
            found = value.at(generation)
            if found is None:
                self._gone[name, key] = None
                continue
            held[key] = found
            if not is_in_force(value.since, generation):
                self._unfinished[name, key] = VERSIONS[name].of(found, found, generation)
        return held

    def went(self) -> set[Place]:
        """The keys of entries that went since the last change began. The kernel may still have them."""
        return self._went

    def settle(self, done: Counter[str]) -> None:
        """Make what earlier changes left to do, and count it. Waits only if something failed. Raises ApplyError."""
        self._count_deleted(done)
        if self._must_repair:
            self._repair(done)

    def commit(self, change: Change, held: Held, done: Counter[str]) -> None:
        """Make a change. Counts writes in `done` by table. `held` gets the new nn_state; of the other tables it is
        updated only if the change is not complete.

        Raises FullError if entries were left out; all others are in force. Raises ApplyError after any other failure:
        nothing of the change is in force, unless the switch itself failed.
        """
        self._repair(done)
        self._went.clear()
        attempt = _Attempt(change, self._tables, held, done)
        attempt.write()
        if attempt.made and change.state is not None:
            try:
                self._tables["nn_state"].update(STATE_KEY, change.state)
            except _FAILURES as error:
                write = Write("nn_state", STATE_KEY, change.state)
                raise ApplyError("nn_state", str(write), error, write, tuple(change.writes)) from error
            held["nn_state"][STATE_KEY] = change.state
            self.generation = change.state.generation
            done["nn_state"] += 1
        gone = attempt.take_effect()
        with self._lock:
            self._gone.update(dict.fromkeys(gone))
        self._went.update(gone)
        if attempt.made and change.state is not None:
            self._grace.begin(self._delete_gone)
            self._count_deleted(done)
        attempt.raise_if_full()

    def _repair(self, done: Counter[str]) -> None:
        """Wait for the end of the grace period, undo an unfinished change, and delete what could not be deleted."""
        try:
            self._grace.wait()
        except OSError as error:
            raise ApplyError("nn_state", "wait for programs that use the previous policy", error) from error
        for (name, key), value in list(self._unfinished.items()):
            self._make(Write(name, key, value), done)
            del self._unfinished[name, key]
        with self._lock:
            for name, key in list(self._gone):
                self._make(Write(name, key), done)
                del self._gone[name, key]
            self._must_repair = False

    def _count_deleted(self, done: Counter[str]) -> None:
        with self._lock:
            # Normally there is nothing, and each run comes here.
            if self._deleted:
                done.update(self._deleted)
                self._deleted.clear()

    def _make(self, write: Write, done: Counter[str]) -> None:
        try:
            if write.is_delete:
                self._tables[write.table].delete(write.key)
            else:
                self._tables[write.table].update(write.key, write.value)
        except _FAILURES as error:
            raise ApplyError(write.table, str(write), error, write) from error
        done[write.table] += 1

    def _delete_gone(self) -> None:
        """After the grace period. What cannot be deleted stays for the next change; it is not in force."""
        with self._lock:
            for name, key in list(self._gone):
                try:
                    self._tables[name].delete(key)
                except _FAILURES:
                    self._must_repair = True
                    return
                self._deleted[name] += 1
                del self._gone[name, key]


def _nothing() -> None:
    pass


class _Attempt:
    """The entries of one change while they are written."""

    def __init__(self, change: Change, tables: Mapping[str, Table], held: Held, done: Counter[str]) -> None:
        self._change = change
        self._tables = tables
        self._held = held
        self._done = done
        self.made: list[Entry] = []
        self._left: list[Write] = []
        self._first: ApplyError | None = None
        # Entries that were deleted before the switch, to make room.
        self._early: set[Place] = set()

    def write(self) -> None:
        """Write all entries. Raises ApplyError after a failure other than a full map."""
        entries = self._change.entries
        regions = [entry for entry in entries if entry.table == "nn_cidr"]
        if regions:
            self._write_regions(regions)
            entries = [entry for entry in entries if entry.table != "nn_cidr"]
        for entry in entries:
            if self._early and (entry.table, entry.key) in self._early:
                continue
            if not self._fits(entry):
                self._stop_for_denies(entry)
                self._left.append(entry.write)

    def _stop_for_denies(self, entry: Entry) -> None:
        """Raises ApplyError if packets would pass a deny because this entry does not fit."""
        # Without a Pass, a weaker rule of the Admin tier may accept.
        narrows = isinstance(entry.now, Rule) and entry.now.action is not Action.ALLOW
        if narrows or (entry.table in _PEERS and self._has_denies()):
            text = f"{entry.write}: no room; {_NOT_IN_FORCE}"
            raise ApplyError(entry.table, text, None, entry.write, tuple(self._change.writes))

    def _has_denies(self) -> bool:
        """Whether an endpoint has rules of different strength, before or after the change."""
        changed = (entry.value for entry in self._change.entries if entry.table == "nn_endpoint")
        found = (*self._held["nn_endpoint"].values(), *changed)
        return any(isinstance(endpoint, EndpointEntry) and endpoint.flags & _TIERED for endpoint in found)

    def _write_regions(self, regions: list[Entry]) -> None:
        """All of them, or none. New ones first: if one does not fit, no other one was replaced."""
        regions.sort(key=lambda entry: entry.key in self._held["nn_cidr"])
        for place, entry in enumerate(regions):
            if not self._fits(entry):
                self._stop_for_denies(entry)
                self._undo(regions[:place])
                self._left += [other.write for other in regions]
                self.made.clear()
                return

    def _fits(self, entry: Entry) -> bool:
        """Write an entry. Returns False if it does not fit, even after deletes that are safe before the switch."""
        table = entry.table
        try:
            self._tables[table].update(entry.key, entry.record(self._change.since))
        except _FAILURES as error:
            if not (is_full(error) and self._fits_after_deletes(entry)):
                self._failed(entry, error)
                return False
        self._done[table] += 1
        self.made.append(entry)
        return True

    def _fits_after_deletes(self, entry: Entry) -> bool:
        while deletes := self._early_deletes(entry):
            try:
                for key in deletes:
                    self._delete(entry.table, key)
                self._tables[entry.table].update(entry.key, entry.record(self._change.since))
            except _FAILURES as error:
                if not is_full(error):
                    self._failed(entry, error)
            else:
                return True
        return False

    def _failed(self, entry: Entry, error: Exception) -> None:
        """Remember the first entry that did not fit. Raises ApplyError if it failed for another reason."""
        write = entry.write
        if not is_full(error):
            rest = tuple(self._change.writes)
            raise ApplyError(entry.table, f"{write}: {_NOT_IN_FORCE}", error, write, rest) from error
        self._first = self._first or ApplyError(entry.table, str(write), error, write)

    def _delete(self, table: str, key: Any) -> None:
        self._tables[table].delete(key)
        self._done[table] += 1
        self._early.add((table, key))

    def _early_deletes(self, entry: Entry) -> list[Any]:
        """Keys to delete before the entry is tried again. Addresses and endpoints that go make room. A full LPM map
        refuses to replace a value too, before Linux 6.13: then the key itself, which closes it until it is written. An
        address without an entry is not closed if an endpoint has denies: then only addresses go that count as the
        world after the change too."""
        table, key = entry.table, entry.key
        denies = table == "nn_ipcache" and self._has_denies()
        if table in ("nn_endpoint", "nn_ipcache"):
            going = [other for other in self._change.entries if other.table == table and other.value is None]
            gone = [other.key for other in going if not denies or other.now is None]
            gone = [other for other in gone if (table, other) not in self._early]
            if gone:
                return gone
        if denies:
            return []
        held = self._held[table].get(key)
        if table not in ("nn_ipcache", "nn_policy") or held is None or (table, key) in self._early:
            return []
        return [] if isinstance(held, Rule) and held.action is not Action.ALLOW else [key]

    def _undo(self, entries: Iterable[Entry]) -> None:
        """Restore regions of which some were written."""
        for entry in entries:
            table, key = entry.table, entry.key
            try:
                if self._held[table].get(key) is None:
                    self._tables[table].delete(key)
                else:
                    self._tables[table].update(key, entry._replace(now=entry.was).record(self._change.since))
            except _FAILURES as error:
                raise ApplyError(table, f"{entry.write}: {_NOT_IN_FORCE}", error, entry.write) from error
            self._done[table] += 1

    def take_effect(self) -> list[Place]:
        """Returns the places of entries that went and wait for their deletion. Updates `held` if entries were left
        out."""
        gone = [(entry.table, entry.key) for entry in self.made if entry.value is None]
        if self._left:
            for entry in self.made:
                if entry.value is not None:
                    self._held[entry.table][entry.key] = entry.value
            set_keys = {(entry.table, entry.key) for entry in self.made if entry.value is not None}
            for table, key in (*gone, *(self._early - set_keys)):
                self._held[table].pop(key, None)
        # An entry that was deleted early may have been written again, so that it counts as gone after the switch.
        return gone

    def raise_if_full(self) -> None:
        if self._first is not None:
            raise FullError(self._first, tuple(self._left)) from self._first


class InForce:
    """A table in SWITCHED for a comparison: only what is in force."""

    def __init__(self, name: str, table: Table, committer: Committer) -> None:
        self._name = name
        self._table = table
        self._committer = committer

    def items(self) -> Iterable[tuple[Any, Any]]:
        went = self._committer.went()
        for key, value in self._table.items():
            found = value.at(self._committer.generation)
            if found is not None and (self._name, key) not in went:
                yield key, found
