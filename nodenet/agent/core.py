"""The node agent: API objects and endpoints in, maps and programs in the kernel, events out. One asyncio process."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from importlib.metadata import version

from nodenet import kinds
from nodenet.agent import pressure
from nodenet.agent.attachments import Attachments
from nodenet.agent.datapath import Datapath
from nodenet.agent.events import Events
from nodenet.agent.health import Health
from nodenet.agent.keepers import Keepers, own_node
from nodenet.agent.measured import AgentSource
from nodenet.agent.memory import freeze_start
from nodenet.agent.node_report import NodeReport
from nodenet.agent.notices import Notices
from nodenet.agent.parts import Parts
from nodenet.agent.policy_status import PolicyStatus
from nodenet.agent.service_health import ServiceHealth
from nodenet.agent.watch import ApiWatch
from nodenet.cni.agent import AgentHooks
from nodenet.cni.server import CniServer
from nodenet.compile import LocalNode
from nodenet.compile.shares import Room
from nodenet.compile.state import NodePorts
from nodenet.config import Config
from nodenet.engine import Engine
from nodenet.kube.client import KubeClient
from nodenet.kube.config import load as load_access
from nodenet.kube.herd import NODES_FILE
from nodenet.kube.writer import KubeWriter
from nodenet.metrics import Metrics
from nodenet.reconcile.loop import Run
from nodenet.rpc.observer import ServerInfo
from nodenet.tables import CIDR

log = logging.getLogger(__name__)


_SERVICE = (
    "the API server is reached by the `kubernetes` Service, which this agent serves itself once it has synced: set "
    "api_servers or NODENET_API_SERVERS"
)


class Agent:
    """Connects the parts and starts them in order. When `run` is cancelled, maps and programs stay in the kernel."""

    def __init__(self, config: Config, datapath: Datapath) -> None:
        room = Room.of(datapath.entries["policy_entries"], CIDR.size.entries, datapath.entries["ipcache_entries"])
        local = LocalNode(
            config.node_name,
            enforce_policy=config.enforce_policy,
            services=config.services,
            room=room,
            node_ports=NodePorts.of(config.node_port_addresses),
        )
        engine = Engine(local, datapath.tables, datapath.grace, resync_seconds=config.resync_seconds)
        access = load_access(config.kubeconfig, config.api_servers, config.api_server_name)
        client = KubeClient(access, nodes_file=config.run_dir / NODES_FILE)
        api = ApiWatch(client, engine, _SERVICE if access.by_service and config.services else "")
        self._writer = KubeWriter(access)
        self._notices = Notices(self._writer, config.node_name)
        self._policy_status = PolicyStatus(config.node_name, self._writer)
        self._report = NodeReport(
            config.node_name,
            self._writer,
            partial(own_node, engine, config.node_name),
            partial(engine.next_change, kinds.NODE),
        )
        keepers = Keepers(datapath, engine)
        info = ServerInfo(f"nodenet {version('nodenet')}", str(config.agent_socket), time.time_ns())
        health = Health(engine, api, keepers, self._writer)
        self.service_health = ServiceHealth(
            engine,
            config.node_name,
            health.healthy,
            lambda: keepers.uplink_programs.why_not,
            services=config.services,
        )
        health.also(self.service_health.problems)
        map_sizes = {name: table.max_entries for name, table in datapath.tables.items()}
        health.also(lambda: pressure.problems(engine.held, map_sizes))
        self.parts = Parts(info, datapath, engine, api, Events(datapath, engine), keepers, health)
        self.source = AgentSource(self.parts)
        self.metrics = Metrics(self.source)
        pods = Attachments(
            config.node_name, engine, api, keepers.endpoints, keepers.addresses, datapath.loaded.programs
        )
        hooks = AgentHooks(
            pods.added,
            pods.deleted,
            expected=pods.expected,
            admit=pods.wired,
            healthy=health.in_words,
            networks=pods.networks,
            mtu=keepers.pod_mtu,
            done=self.metrics.cni_operation,
        )
        self.cni = CniServer(config.run_dir, hooks)

    async def run(self) -> None:
        """Keep the node up to date, until cancelled. Raises errors for which a retry does not help."""
        parts = self.parts
        try:
            isolated = await parts.keepers.start()
            async with self._writer, asyncio.TaskGroup() as tasks:
                tasks.create_task(parts.api.run(), name="API")
                tasks.create_task(self._notices.run(), name="notices")
                tasks.create_task(self._notices.watch_objects(parts.api.stats, parts.engine), name="object notices")
                tasks.create_task(parts.engine.run(self._after_run), name="reconcile")
                tasks.create_task(parts.events.run(), name="events")
                tasks.create_task(self.service_health.run(), name="service health")
                tasks.create_task(parts.keepers.run(parts.health.ready), name="keepers")
                tasks.create_task(self._report.keep(parts.health.ready), name="node report")
                tasks.create_task(self._policy_status.keep(parts.engine), name="policy status")
                tasks.create_task(self._become_ready(isolated), name="ready")
        finally:
            await self.cni.close()
            parts.keepers.close()

    def _after_run(self, run: Run) -> None:
        self.metrics.reconciled(run.seconds, run.failed)
        latencies = self.parts.engine.finished(run)
        if latencies is not None:
            self.metrics.proxy.ran(run.seconds, full=run.full)
            for seconds in latencies:
                self.metrics.proxy.programmed(seconds)
        if run.members is not None:
            self.parts.keepers.sockets.members(run.members)
        current = self.parts.engine.current
        self._notices.policies.update(current.names.left_out, current.snapshot.has_policy)

    async def _become_ready(self, attached: int) -> None:
        """Fill the maps, then attach the programs, so that each program finds its rules. Then take over endpoints that
        the plugin created or deleted without the agent. `attached`: how many programs were attached before."""
        engine, datapath, endpoints = self.parts.engine, self.parts.datapath, self.parts.keepers.endpoints
        await engine.in_force()
        attached += await endpoints.attach_all()
        sockets = await asyncio.to_thread(datapath.attach_sockets)
        await asyncio.to_thread(datapath.forget_old)
        await self.cni.start()
        attached += await endpoints.sync_from_disk()
        await engine.in_force()
        self.parts.health.became_ready()
        log.info(
            "ready after %.2f s: %d endpoints, %d programs attached, %d map writes",
            self.parts.health.ready_after,
            len(endpoints.known()),
            attached + len(sockets),
            engine.stats.writes.total(),
        )
        freeze_start()
