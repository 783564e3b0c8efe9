"""store -> compile -> plan -> apply: takes API objects and endpoints, writes the kernel's maps, and provides names for
flows.

The agent, the benchmark, the checks in virtual machines and tests all use this object to fill maps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nodenet import kinds
from nodenet.abi import AddressKey
from nodenet.compile import Compiler, DesiredState, LocalNode, Names, ServicePortName
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.types import NameTable
from nodenet.kinds import KINDS, Kind
from nodenet.model import EndpointSlice, IPAddress
from nodenet.pulse import Pulse
from nodenet.reconcile.apply import Table
from nodenet.reconcile.clock import Clock, RealClock
from nodenet.reconcile.grace import Grace
from nodenet.reconcile.loop import Job, ReconcileLoop, Run, RunBlocking, Stats
from nodenet.reconcile.maps import Maps, Outcome
from nodenet.reconcile.plan import Tables, Write
from nodenet.reconcile.service_syncs import Changes, ServiceSyncs
from nodenet.store import Delta, Listing, Op, Snapshot, Store, StoreEvent

log = logging.getLogger(__name__)

# A run is small if it has at most this many changes, all of these kinds: the change of a Service affects no other
# Service. A single Namespace or NetworkPolicy may affect every pod.
SMALL_CHANGES = 16
# One run logs at most this many policies by name whose rules no longer fit into the maps, and as many whose rules fit
# again, and as many parts of Services that are not served. Status and `service list` name all of them.
_MOST_LOGGED = 20
_SMALL_KINDS = frozenset({kinds.SERVICE, kinds.ENDPOINT_SLICE})


@dataclass(frozen=True, slots=True)
class Compiled:
    """One compilation: the Snapshot, the desired content of the maps, and the names for numbers in maps and events.

    The parts belong together. Take this value once and read all parts from it, because a later compilation may replace
    it at any time.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    desired: DesiredState = field(default_factory=DesiredState)
    names: Names = field(default_factory=Names)
    flow_names: NameTable = field(default_factory=NameTable)
    # The Services of the previous compilation, to name those that were just deleted.
    services_before: Mapping[int, ServicePortName] = field(default_factory=dict)

    def service_name(self, number: int) -> str:
        """The name of a service_id, also for a Service that was in the previous compilation only."""
        found = self.names.services.get(number) or self.services_before.get(number)
        if found:
            return f"Service {found.ref}"
        pod = self.names.host_ports.get(number)
        return f"hostPort {pod.port} of pod {pod.ref}" if pod else f"Service number {number}"


def _ignore(run: Run) -> None:
    """For callers that do not need the result of each run."""


class Engine:
    """Keeps the maps up to date with its input, and publishes each compilation as one value.

    `tables` has a Table for every name in reconcile.maps.TABLES; `grace` waits for the programs that read them. Use
    everything except `current` and `pod_is_removed` only in the event loop that calls `run`. Compiling and writing
    happen in a worker thread, except for small runs.
    """

    def __init__(
        self,
        local: LocalNode,
        tables: Mapping[str, Table],
        grace: Grace,
        clock: Clock | None = None,
        *,
        resync_seconds: float = 60.0,
        run_blocking: RunBlocking = asyncio.to_thread,
    ) -> None:
        self._clock = clock or RealClock()
        self._store = Store(node_name=local.name)
        # Which changes of Services are in force, and since when.
        self.service_syncs = ServiceSyncs(self._clock.time())
        # One per kind; fires at each change of that kind in the Snapshot.
        self._changes = {kind: Pulse() for kind in KINDS}
        self._work = _Work(self._store, local, Maps(tables, grace))
        self._loop = ReconcileLoop(
            self._take, self._work.maps, self._clock, resync_seconds=resync_seconds, run_blocking=run_blocking
        )

    # In

    def feed(self, *events: StoreEvent) -> bool:
        """Take events from sources. If they change anything, triggers a run and returns True."""
        changed = [event for event in events if self._store.feed(event)]
        if not changed:
            return False
        changed_kinds = {self._store.kind_of(event) for event in changed}
        for kind in changed_kinds:
            self._changes[kind].fire()
        if not changed_kinds.isdisjoint(_SMALL_KINDS):
            self.service_syncs.queued(self._clock.time(), _triggers(changed))
        # A list is never small, because it may change many objects.
        listed = any(isinstance(event, Listing) for event in changed)
        self._work.note(len(changed), small=not listed and changed_kinds <= _SMALL_KINDS)
        self._loop.trigger()
        return True

    def own_addresses(self, addresses: frozenset[IPAddress]) -> None:
        """Set the node's own addresses."""
        self._work.set_local(replace(self._work.local, addresses=addresses))
        self._loop.trigger()

    def serve_host_ports(self, served: bool) -> None:
        """Set whether the agent serves hostPorts, or a plugin does."""
        self._work.set_local(replace(self._work.local, host_ports=served))
        self._loop.trigger()

    async def run(self, ran: Callable[[Run], None] = _ignore) -> None:
        """Keep the maps up to date, until cancelled. `ran` is called after each run."""
        await self._loop.run(ran)

    def run_once(self) -> Outcome:
        """Do one run now, in this thread, for callers without an event loop. Raises the first error of the run, or
        RuntimeError if a list has not arrived yet."""
        job = self._take()
        if job is None:
            raise RuntimeError(f"no list yet of: {', '.join(map(str, self.missing))}")
        outcome = job.run()
        if outcome.errors:
            raise outcome.errors[0]
        return outcome

    def finished(self, run: Run) -> Sequence[float] | None:
        """Call it in `ran`. Returns the latencies of the changes of Services that the run brought into force; None if
        it had nothing to do with Services."""
        return self.service_syncs.finished(self._clock.time(), in_force=run.services, full=run.full)

    def _take(self) -> Job | None:
        job = self._work.take()
        if job is not None:
            self.service_syncs.taken(self.service_changes)
        return job

    # Out

    @property
    def service_changes(self) -> Changes:
        """How many changes of Services and EndpointSlices were fed so far."""
        changes = self._store.changes
        return Changes(changes[kinds.SERVICE], changes[kinds.ENDPOINT_SLICE])

    @property
    def current(self) -> Compiled:
        """The last compilation. It is published before its writes, so that the first events of new entries have names.
        May be read from any thread."""
        return self._work.current

    @property
    def stats(self) -> Stats:
        """Statistics of the reconcile loop."""
        return self._loop.stats

    @property
    def held(self) -> Tables:
        """The content of the maps after the last run."""
        return self._work.maps.held

    def flow_names(self) -> NameTable:
        """The current names for events."""
        return self._work.current.flow_names

    @property
    def missing(self) -> tuple[Kind, ...]:
        """The kinds whose first list has not arrived. No map is written until all lists have arrived."""
        return self._store.missing

    @property
    def revision(self) -> int:
        """A number that grows with each change that was fed."""
        return self._store.revision

    def snapshot(self) -> Snapshot:
        """Everything that was fed so far. `current` may be older."""
        return self._store.snapshot()

    def pod_is_removed(self, uid: str) -> bool:
        """True if a pod of this node with this UID was removed. May be called from any thread."""
        return self._store.pod_is_removed(uid)

    def next_change(self, kind: Kind) -> asyncio.Event:
        """An event that is set at the next change of a kind, or at its first list."""
        return self._changes[kind].next()

    async def in_force(self) -> None:
        """Wait until everything that was fed so far is in the kernel: endpoints, isolation and policy completely,
        Services as far as possible. There is no time limit; the caller sets one."""
        await self._loop.wait_for(self._store.revision)

    async def endpoint_in_force(self, addresses: Collection[IPAddress]) -> None:
        """Like `in_force`, but for the endpoint with these addresses only: writes for other endpoints need not fit."""
        await self._loop.wait_for(self._store.revision, partial(self._concerns, frozenset(addresses)))

    def _concerns(self, addresses: Collection[IPAddress], write: Write) -> bool:
        if write.table in ("nn_endpoint", "nn_ipcache"):
            return write.key.addr in addresses
        if write.table != "nn_policy":
            # A region may belong to the rules of any endpoint.
            return True
        entries = self.current.desired.tables.get("nn_endpoint", {})
        own = (entries.get(AddressKey(address)) for address in addresses)
        return any(entry is not None and entry.identity == write.key.subject for entry in own)


def _triggers(events: Iterable[StoreEvent]) -> Iterator[float]:
    """When the pods of changed EndpointSlices changed. A list says nothing: it may be old."""
    for event in events:
        if isinstance(event, Delta) and isinstance(event.obj, EndpointSlice) and event.op is not Op.DELETED:
            yield event.obj.changed_at


class _Work:
    """Collects changes and makes runs. A run reads the maps, compiles, publishes and writes. Call all methods in the
    event loop; only `_run` may run in a thread."""

    def __init__(self, store: Store, local: LocalNode, maps: Maps) -> None:
        self.local = local
        self.maps = maps
        self.current = Compiled()
        self._store = store
        self._compiler = Compiler()
        self._flow_names = NameTableBuilder()
        self._restored = False
        # Number of changes since the last run, and whether all are of small kinds.
        self._changes = 0
        self._small = True

    def note(self, changes: int, *, small: bool) -> None:
        """Count events that changed something. `small`: all of them are small."""
        self._changes += changes
        self._small = self._small and small

    def set_local(self, local: LocalNode) -> None:
        """Replace the node's own data. The next run is then not small."""
        self.local, self._small = local, False

    def take(self) -> Job | None:
        """A run for the current Snapshot, or None before all lists have arrived. Later changes are for the next run."""
        if not self._store.synced:
            return None
        small = self._small and self._changes <= SMALL_CHANGES and self.maps.known
        self._small, self._changes = True, 0
        return Job(partial(self._run, self._store.snapshot(), self.local), small)

    def _run(self, snapshot: Snapshot, local: LocalNode) -> Outcome:
        outcome = Outcome(snapshot.revision)
        try:
            if not self.maps.known:
                self.maps.read(outcome)
            compiled = self._compile(snapshot, local)
        except Exception as error:  # noqa: BLE001 an error in the compiler must not end the agent
            outcome.errors.append(error)
            return outcome
        # Publish with one assignment, so that a reader in another thread never gets parts of two compilations.
        self.current = compiled
        self.maps.write(compiled.desired.tables, outcome)
        if not outcome.errors:
            self._compiler.settle()
        return outcome

    def _compile(self, snapshot: Snapshot, local: LocalNode) -> Compiled:
        if not self._restored:
            self._compiler.restore(self.maps.held)
            self._restored = True
        last = self.current.names
        desired, names = self._compiler.compile(snapshot, local)
        if names.warnings is not last.warnings:
            _log_warnings(last, names)
        _log_left_out(last, names)
        flow_names = self._flow_names.build(
            snapshot, names, local, desired.tables["nn_ipcache"], now=time.monotonic_ns()
        )
        return Compiled(snapshot, desired, names, flow_names, last.services)


def _log_warnings(last: Names, names: Names) -> None:
    """Log new warnings about Services."""
    known = set(last.warnings)
    new = [warning for warning in names.warnings if warning not in known]
    for warning in new[:_MOST_LOGGED]:
        log.warning("%s", warning)
    if len(new) > _MOST_LOGGED:
        log.warning("parts of Services that are not served: %d more", len(new) - _MOST_LOGGED)


def _log_left_out(last: Names, names: Names) -> None:
    """Log each policy once when its rules do not fit, and once when they fit again."""
    if names.left_out == last.left_out:
        return
    before, after = ({one.policy: one for one in some.left_out} for some in (last, names))
    if before.keys() == after.keys():
        return
    for one in [one for policy, one in after.items() if policy not in before][:_MOST_LOGGED]:
        log.warning("%s", one)
    gone = sorted(before.keys() - after.keys())
    for policy in gone[:_MOST_LOGGED]:
        log.info("policy %s: its rules have room now", policy)
    log.warning("policies whose rules have no room: %d", len(after))
