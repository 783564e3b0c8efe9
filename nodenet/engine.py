"""store -> compile -> plan -> apply: API objects and endpoints in, the kernel's maps and names for people out.

One object for whoever fills maps: the agent, the benchmark, the checks in virtual machines, tests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nodenet import kinds
from nodenet.abi import AddressKey
from nodenet.compile import Compiler, DesiredState, LocalNode, Names, ServicePortName
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.types import NameTable
from nodenet.kinds import KINDS, Kind
from nodenet.model import IPAddress
from nodenet.pulse import Pulse
from nodenet.reconcile.apply import Table
from nodenet.reconcile.clock import Clock
from nodenet.reconcile.loop import Job, ReconcileLoop, Run, RunBlocking, Stats
from nodenet.reconcile.maps import Maps, Outcome
from nodenet.reconcile.plan import Tables, Write
from nodenet.store import Listing, Snapshot, Store, StoreEvent

log = logging.getLogger(__name__)

# A run with no more than so many changes, all of these kinds, has little to do: a Service's change concerns no other
# Service. One Namespace or NetworkPolicy may concern every pod.
SMALL_CHANGES = 16
# Policies whose rules have no room: so many at most are named by one run. `nodenet status` names all of them.
_MOST_LOGGED = 20
_SMALL_KINDS = frozenset({kinds.SERVICE, kinds.ENDPOINT_SLICE})


@dataclass(frozen=True, slots=True)
class Compiled:
    """One compilation: what was read, what the maps must hold, and what the numbers in them and in events mean.

    The parts belong together. Take the value once and read all of it: a later one may have replaced it meanwhile.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    desired: DesiredState = field(default_factory=DesiredState)
    names: Names = field(default_factory=Names)
    flow_names: NameTable = field(default_factory=NameTable)
    # The Services of the compilation before: names of those that have just gone.
    services_before: Mapping[int, ServicePortName] = field(default_factory=dict)

    def service_name(self, number: int) -> str:
        """What a service_id stands for, in words. Also for a Service that this compilation no longer has."""
        found = self.names.services.get(number) or self.services_before.get(number)
        return f"Service {found.ref}" if found else f"Service number {number}"


def _ignore(run: Run) -> None:
    """For whoever needs no account of each run."""


class Engine:
    """Keeps the maps at what it is fed, and publishes each compilation as one value.

    `tables` holds a Table for every name of reconcile.maps.TABLES. Everything but `current` and `pod_is_removed` is for
    the event loop that calls `run`. Compiling and writing are in a worker thread, unless there is little to do.
    """

    def __init__(
        self,
        local: LocalNode,
        tables: Mapping[str, Table],
        clock: Clock | None = None,
        *,
        resync_seconds: float = 60.0,
        run_blocking: RunBlocking = asyncio.to_thread,
    ) -> None:
        self._store = Store(node_name=local.name)
        # Fires at each change of a kind that a Snapshot shows.
        self._changes = {kind: Pulse() for kind in KINDS}
        self._work = _Work(self._store, local, Maps(tables))
        self._loop = ReconcileLoop(
            self._work.take, self._work.maps, clock, resync_seconds=resync_seconds, run_blocking=run_blocking
        )

    # In

    def feed(self, *events: StoreEvent) -> bool:
        """Take what sources yield. If it changes anything, a run follows; returns whether it does."""
        changed = [event for event in events if self._store.feed(event)]
        for kind in {self._store.kind_of(event) for event in changed}:
            self._changes[kind].fire()
        if changed:
            self._work.note(changed)
            self._loop.trigger()
        return bool(changed)

    def own_addresses(self, addresses: frozenset[IPAddress]) -> None:
        """These are the node's own addresses from now on."""
        self._work.move(replace(self._work.local, addresses=addresses))
        self._loop.trigger()

    async def run(self, ran: Callable[[Run], None] = _ignore) -> None:
        """Bring the maps up to date and keep them so, until cancelled. `ran` is called after each run."""
        await self._loop.run(ran)

    def run_once(self) -> Outcome:
        """One run at once, in this thread, for a caller without an event loop. Raises the first error; RuntimeError
        before every list has arrived."""
        job = self._work.take()
        if job is None:
            raise RuntimeError(f"no list yet of: {', '.join(map(str, self.missing))}")
        outcome = job.run()
        if outcome.errors:
            raise outcome.errors[0]
        return outcome

    # Out

    @property
    def current(self) -> Compiled:
        """The last compilation. It is published before its writes are made: events of new entries have their names at
        once. From any thread."""
        return self._work.current

    @property
    def stats(self) -> Stats:
        """What the loop did so far."""
        return self._loop.stats

    @property
    def held(self) -> Tables:
        """What the maps hold after the last run."""
        return self._work.maps.held

    def flow_names(self) -> NameTable:
        """The names for events of this moment."""
        return self._work.current.flow_names

    @property
    def missing(self) -> tuple[Kind, ...]:
        """Kinds whose first list has not arrived. Nothing is written before."""
        return self._store.missing

    @property
    def revision(self) -> int:
        """Grows with each change that was fed."""
        return self._store.revision

    def snapshot(self) -> Snapshot:
        """What was fed so far. `current` may be older."""
        return self._store.snapshot()

    def pod_is_removed(self, uid: str) -> bool:
        """Whether a pod of this UID was here and is gone for good. From any thread."""
        return self._store.pod_is_removed(uid)

    def next_change(self, kind: Kind) -> asyncio.Event:
        """The event of the next change of a kind, its first list included."""
        return self._changes[kind].next()

    async def in_force(self) -> None:
        """Return when what was fed so far is in the kernel: endpoints, isolation and policy for certain, Services as
        far as they could be written. Waits as long as it takes: the caller sets a limit."""
        await self._loop.wait_for(self._store.revision)

    async def endpoint_in_force(self, addresses: Collection[IPAddress]) -> None:
        """As `in_force`, for the endpoint with these addresses: what is about others may lack room in a map."""
        await self._loop.wait_for(self._store.revision, partial(self._concerns, frozenset(addresses)))

    def _concerns(self, addresses: Collection[IPAddress], write: Write) -> bool:
        if write.table in ("nn_endpoint", "nn_ipcache"):
            return write.key.addr in addresses
        if write.table != "nn_policy":
            # A region may be part of anybody's rules.
            return True
        entries = self.current.desired.tables.get("nn_endpoint", {})
        own = (entries.get(AddressKey(address)) for address in addresses)
        return any(entry is not None and entry.identity == write.key.subject for entry in own)


class _Work:
    """Runs: what is to be done next, and doing it, which reads, compiles, publishes and writes. All but the runs
    themselves is for the event loop."""

    def __init__(self, store: Store, local: LocalNode, maps: Maps) -> None:
        self.local = local
        self.maps = maps
        self.current = Compiled()
        self._store = store
        self._compiler = Compiler()
        self._flow_names = NameTableBuilder()
        self._restored = False
        # Since the last run: how many changes there were, and whether they are all of small kinds.
        self._changes = 0
        self._small = True

    def note(self, changed: Sequence[StoreEvent]) -> None:
        """These events changed something. A list may have changed anything."""
        self._changes += len(changed)
        self._small = self._small and not any(
            isinstance(event, Listing) or self._store.kind_of(event) not in _SMALL_KINDS for event in changed
        )

    def move(self, local: LocalNode) -> None:
        """The node is another from now on."""
        self.local, self._small = local, False

    def take(self) -> Job | None:
        """A run for what is known now: a change that is fed meanwhile is for the next one."""
        if not self._store.synced:
            return None
        small = self._small and self._changes <= SMALL_CHANGES and self.maps.known
        self._small, self._changes = True, 0
        return Job(partial(self._run, self._store.snapshot(), self.local), small)

    def _run(self, snapshot: Snapshot, local: LocalNode) -> Outcome:
        outcome = Outcome(snapshot.revision)
        try:
            self.maps.read(outcome)
            compiled = self._compile(snapshot, local)
        except Exception as error:  # noqa: BLE001 a fault in the compiler must not end what the kernel does already
            outcome.errors.append(error)
            return outcome
        # One assignment: a reader in another thread has the value before or this one, never parts of both.
        self.current = compiled
        self.maps.bring(compiled.desired.tables, outcome)
        if not outcome.errors:
            self._compiler.settle()
        return outcome

    def _compile(self, snapshot: Snapshot, local: LocalNode) -> Compiled:
        if not self._restored:
            self._compiler.restore(self.maps.held)
            self._restored = True
        last = self.current.names
        desired, names = self._compiler.compile(snapshot, local)
        for warning in set(names.warnings) - set(last.warnings):
            log.warning("%s", warning)
        _log_left_out(last, names)
        flow_names = self._flow_names.build(
            snapshot, names, local, desired.tables["nn_ipcache"], now=time.monotonic_ns()
        )
        return Compiled(snapshot, desired, names, flow_names, last.services)


def _log_left_out(last: Names, names: Names) -> None:
    """Each policy once, when its rules go out of force and when they are in force again."""
    if names.left_out == last.left_out:
        return
    before, after = ({one.policy: one for one in some.left_out} for some in (last, names))
    for one in [one for policy, one in after.items() if policy not in before][:_MOST_LOGGED]:
        log.warning("%s", one)
    gone = sorted(before.keys() - after.keys())
    for policy in gone[:_MOST_LOGGED]:
        log.info("NetworkPolicy %s/%s: its rules have room now", policy.namespace, policy.name)
    log.warning("policies whose rules have no room: %d", len(after))
