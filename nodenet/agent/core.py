"""The node agent: API objects and endpoints in, maps and programs in the kernel, events out. One asyncio process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from nodenet import abi, kinds
from nodenet.agent.addresses import OwnAddresses
from nodenet.agent.api_health import watch_trouble
from nodenet.agent.datapath import Datapath
from nodenet.agent.endpoints import Endpoints, key_of
from nodenet.agent.features import SOCK_DESTROY
from nodenet.agent.host import Admitted, Host, admit
from nodenet.agent.integrity import Integrity
from nodenet.agent.measured import AgentSource
from nodenet.agent.routes import RouteKeeper, Wanted, wanted_routes
from nodenet.agent.sockets import Place, SocketKeeper
from nodenet.agent.waiting import pod_known, policies_known, refuse_removed
from nodenet.bpf.probe import available
from nodenet.bpf.ringbuf import EventReader
from nodenet.cni.hooks import Wired
from nodenet.cni.request import Request
from nodenet.cni.server import CniServer
from nodenet.compile import Compiler, DesiredState, LocalNode, Names
from nodenet.config import Config
from nodenet.endpoint import AttachmentKey
from nodenet.errors import NodenetError
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.kinds import API_KINDS, KINDS, ApiKind
from nodenet.kube.client import KubeClient
from nodenet.kube.config import load as load_access
from nodenet.metrics import Metrics
from nodenet.model import Endpoint, IPNetwork, ObjectRef
from nodenet.reconcile.loop import Hooks, ReconcileLoop
from nodenet.rpc.feed import Feed, new_origin
from nodenet.rpc.observer import ServerInfo
from nodenet.store import Snapshot, Store

log = logging.getLogger(__name__)

# Seconds between looks at what the kernel lost, and at the time of day.
UPKEEP_SECONDS = 1.0
# Seconds between looks into the ring buffer, whose writers wake nobody before it fills (bpf/lib/events.h).
EVENT_SECONDS = 0.05


class Agent:
    """Joins the parts. `run` never returns by itself; what is in the kernel stays when it is cancelled."""

    def __init__(self, config: Config, datapath: Datapath) -> None:
        self.config = config
        self.datapath = datapath
        self.started = time.time_ns()
        self.host = Host()
        self.routes = RouteKeeper(self.host.sync_routes, config.resync_seconds)
        self.store = Store()
        self.sockets = SocketKeeper(
            self._places,
            datapath.tables["nn_sock_revnat"],
            self._service_name,
            config.resync_seconds,
            available(datapath.features, SOCK_DESTROY),
        )
        self.endpoints = Endpoints(
            config.run_dir,
            self.host,
            self.store,
            datapath.loaded.programs,
            changed=self._wake,
            in_force=lambda: self.loop.wait_for(self.store.revision),
        )
        self.integrity = Integrity(
            self.host,
            datapath,
            datapath.loaded.programs,
            lambda: list(self.store.snapshot().endpoints.values()),
            self.endpoints.repair,
            lambda: self.loop.stats.drift,
        )
        self.compiler = Compiler()
        self.addresses = OwnAddresses(self.host.local_addresses, lambda: self.loop.trigger())
        # Of the last compilation, for people and metrics.
        self.snapshot = Snapshot()
        self.names = Names()
        # Of the compilation before that: the names of Services that are gone.
        self._last_names = Names()
        self.desired = DesiredState()
        self.pipeline = Pipeline(Ring(config.flow_buffer), _clock_offset())
        self.feed = Feed(self.pipeline, new_origin(config.node_name, config.cluster_name))
        self.info = ServerInfo(f"nodenet {version('nodenet')}", str(config.agent_socket), self.started)
        self.source = AgentSource(self)
        self.metrics = Metrics(self.source)
        self.client = KubeClient(load_access(config.kubeconfig))
        self.cni = CniServer(
            config.run_dir,
            self.endpoint_added,
            self.endpoint_deleted,
            expected=self.pod_expected,
            admit=self.endpoint_wired,
            healthy=self.cni_trouble,
            networks=self.pod_networks,
            done=self.metrics.cni_operation,
        )
        self.loop = ReconcileLoop(
            lambda: self.store.snapshot() if self.store.synced else None,
            self._compile,
            datapath.tables,
            hooks=Hooks(
                restore=self.compiler.restore,
                settled=self.compiler.settle,
                members=self.sockets.members,
                ran=lambda seconds, failed: self.metrics.reconciled(seconds, failed),
            ),
            resync_seconds=config.resync_seconds,
        )
        # Of ADDs between their two halves.
        self._admitted: dict[AttachmentKey, Admitted] = {}
        # Programs attached to what the plugin alone made, before anything else.
        self._isolated = 0
        self.ready = asyncio.Event()
        # Seconds from the start of the process, interpreter and imports included.
        self.ready_after = 0.0
        self._changed = asyncio.Event()
        # Routes follow Nodes: a change of anything else need not wake their keeper.
        self._nodes_changed = asyncio.Event()
        self._table_builder = NameTableBuilder()
        self._lost_events = 0

    async def run(self) -> None:
        """Bring the node up to date and keep it so. Raises what cannot be mended by trying again."""
        await self.endpoints.read()
        self._isolated = await self.endpoints.isolate()
        await self.addresses.look()
        reader = self.datapath.read_events(self.pipeline.receive)
        event_loop = asyncio.get_running_loop()
        event_loop.add_reader(reader.fd, self._read_events, reader)
        try:
            async with self.client, asyncio.TaskGroup() as tasks:
                for kind in API_KINDS:
                    tasks.create_task(self._watch(kind), name=f"watch {kind}")
                tasks.create_task(self.loop.run(), name="reconcile")
                tasks.create_task(self.routes.keep(self._wanted_routes, lambda: self._nodes_changed), name="routes")
                tasks.create_task(self.sockets.keep(), name="sockets")
                tasks.create_task(self._upkeep(), name="upkeep")
                tasks.create_task(self._keep_endpoints(), name="endpoints")
                tasks.create_task(self.addresses.keep(), name="addresses")
                tasks.create_task(self.integrity.keep(self.ready), name="integrity")
                tasks.create_task(self._look_for_events(reader), name="events")
                tasks.create_task(self._become_ready(), name="ready")
        finally:
            event_loop.remove_reader(reader.fd)
            await self.cni.close()
            reader.close()
            self.host.close()

    # Endpoints

    def pod_expected(self, request: Request) -> None:
        """CNI ADD, in its worker thread, before anything is made."""
        refuse_removed(self.store, request.pod, request.pod_uid)

    def endpoint_wired(self, wired: Wired) -> None:
        """CNI ADD, in its worker thread: from here on the pod's packets meet our programs."""
        self._admitted[key_of(wired.endpoint)] = admit(wired, self.datapath.loaded.programs)

    async def endpoint_added(self, endpoint: Endpoint) -> None:
        """CNI ADD, all wired: return when the endpoint's own policy is in force."""
        admitted = self._admitted.pop(key_of(endpoint))
        self.addresses.gained(admitted.gateways)
        self.endpoints.added(replace(endpoint, netns_id=admitted.netns_id), admitted.cookie)
        if endpoint.pod.name:
            await pod_known(self.store, endpoint, lambda: self._changed)
            await policies_known(self.client.stats, endpoint)
        await self.loop.wait_for(self.store.revision)

    async def endpoint_deleted(self, endpoint: Endpoint) -> None:
        """CNI DEL, wires cut: return when nothing in the kernel speaks of the endpoint."""
        self._admitted.pop(key_of(endpoint), None)
        self.endpoints.deleted(key_of(endpoint))
        await self.loop.wait_for(self.store.revision)

    async def cni_trouble(self) -> str:
        """For CNI STATUS: what keeps this node from serving its pods as it should, in a sentence, or ""."""
        return "" if self.healthy() else "; ".join(self.trouble()) or "it is not ready yet"

    def pod_networks(self) -> tuple[IPNetwork, ...]:
        """This node's spec.podCIDRs, in their order; none when the API has not told them. From any thread."""
        node = self.snapshot.nodes.get(ObjectRef("", self.config.node_name))
        return node.pod_cidrs if node else ()

    async def _become_ready(self) -> None:
        """Maps first, then programs: none is attached before it finds its rules. What the plugin alone did before this
        agent listened is taken over after that."""
        await self.loop.wait_for(0)
        attached = self._isolated + await self.endpoints.attach_all()
        sockets = await asyncio.to_thread(self.datapath.attach_sockets)
        await asyncio.to_thread(self.datapath.forget_old)
        await self.cni.start()
        attached += await self.endpoints.look()
        await self.loop.wait_for(self.store.revision)
        self.ready_after = _process_age()
        self.ready.set()
        log.info(
            "ready after %.2f s: %d endpoints, %d programs attached, %d map writes",
            self.ready_after,
            len(self.endpoints.cookies),
            attached + len(sockets),
            self.loop.stats.writes.total(),
        )

    # Down: API to kernel

    async def _watch(self, kind: ApiKind) -> None:
        async for event in self.client.watch(kind):
            synced = self.store.synced
            if self.store.feed(event):
                self._wake()
                # The last first list makes the Nodes known, whatever it lists.
                if kind is kinds.NODE or not synced:
                    self._nodes_changed.set()
                    self._nodes_changed = asyncio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self.loop.trigger()

    def _compile(self, snapshot: Snapshot) -> DesiredState:
        """In the reconcile loop's worker thread."""
        local = LocalNode(self.config.node_name, self.addresses.known, self.config.enforce_policy)
        desired, names = self.compiler.compile(snapshot, local)
        for warning in set(names.warnings) - set(self.names.warnings):
            log.warning("%s", warning)
        self._last_names = self.names
        self.snapshot, self.names, self.desired = snapshot, names, desired
        cookies = {cookie: key for key, cookie in self.endpoints.cookies.items()}
        self.pipeline.names = self._table_builder.build(
            snapshot, names, local, cookies, desired.tables.get("nn_ipcache"), now=time.monotonic_ns()
        )
        return desired

    async def _keep_endpoints(self) -> None:
        """What the plugin alone makes or takes away while it cannot reach the agent."""
        await self.ready.wait()
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            try:
                await self.endpoints.look()
            except (NodenetError, OSError) as error:
                log.warning("endpoints could not be looked at: %s", error)

    def _places(self) -> list[Place]:
        """Namespaces whose sockets our programs translate: this one and every endpoint's, each once."""
        pods = {e.netns: str(e.pod) for e in self.store.snapshot().endpoints.values()}
        return [Place(f"node {self.config.node_name}", None), *(Place(f"pod {pod}", n) for n, pod in pods.items())]

    def _service_name(self, number: int) -> str:
        found = self.names.services.get(number) or self._last_names.services.get(number)
        return f"Service {found.ref}" if found else f"Service number {number}"

    def _wanted_routes(self) -> Wanted | None:
        return wanted_routes(self.store.snapshot(), self.config.node_name) if self.store.synced else None

    # Up: kernel to people

    async def _look_for_events(self, reader: EventReader) -> None:
        more = False
        while True:
            await asyncio.sleep(0 if more else EVENT_SECONDS)
            more = self._read_events(reader)

    def _read_events(self, reader: EventReader) -> bool:
        """One batch; whether there may be more."""
        seen = self.pipeline.ring.end
        more = reader.consume()
        if self.pipeline.ring.end != seen:
            self.feed.wake()
        return more

    async def _upkeep(self) -> None:
        """What the ring buffer had no room for, and the distance between the clocks."""
        self._lost_events = self._count_lost()
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.pipeline.clock_offset = _clock_offset()
            lost = self._count_lost()
            if lost > self._lost_events:
                self.pipeline.lost_in_kernel(lost - self._lost_events, time.time_ns())
                self.feed.wake()
                self._lost_events = lost

    def _count_lost(self) -> int:
        metrics = self.datapath.tables["nn_metrics"]
        keys = [abi.MetricsKey(abi.LOST_EVENTS, direction) for direction in (1, 2)]
        return sum(entry.packets for key in keys for entry in metrics.get(key) or ())

    # For people

    def objects(self) -> dict[str, int]:
        """How many of each kind the agent knows."""
        counts = {kind.place: len(getattr(self.snapshot, kind.place)) for kind in KINDS}
        return counts | {"identities": len(self.names.identities)}

    def healthy(self) -> bool:
        return self.ready.is_set() and not self.loop.stats.failing

    def trouble(self) -> list[str]:
        """What is wrong now, a sentence each."""
        found = []
        if not self.store.synced:
            missing = ", ".join(map(str, self.store.missing))
            found.append(f"waiting for the first list of: {missing}")
        found += watch_trouble(self.client.stats, time.monotonic())
        found += self.endpoints.unpoliced.values()
        found += self.integrity.problems
        found += self.integrity.recent()
        found += self.routes.problems
        found += self.sockets.problems
        if self.loop.stats.failing:
            found.append(f"maps: {self.loop.stats.last_error}")
        return found


def _clock_offset() -> int:
    """Nanoseconds from CLOCK_MONOTONIC, which the kernel's events carry, to the time of day."""
    return time.time_ns() - time.monotonic_ns()


def _process_age() -> float:
    """Seconds since this process was started: proc(5), field 22 of stat, in clock ticks since boot."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
