"""The tasks that keep a node up to date beside the maps: programs on pods' interfaces, routes, sockets, addresses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial

from nodenet import kinds
from nodenet.agent import outside, uplink_programs
from nodenet.agent.addresses import OwnAddresses
from nodenet.agent.conflist import ConflistKeeper
from nodenet.agent.connections import ConnectionKeeper
from nodenet.agent.datapath import Datapath
from nodenet.agent.endpoints import Endpoints
from nodenet.agent.evictions import EvictionWatch
from nodenet.agent.features import SOCK_DESTROY
from nodenet.agent.foreign_rules import ForeignRules
from nodenet.agent.host import Host
from nodenet.agent.host_ports import HostPortOwner
from nodenet.agent.integrity import Integrity
from nodenet.agent.masquerade import Masquerade
from nodenet.agent.routes import RouteKeeper, Wanted, wanted_routes
from nodenet.agent.sockets import Peers, Place, SocketKeeper
from nodenet.agent.source_ports import SourcePorts
from nodenet.agent.uplink import UplinkKeeper
from nodenet.agent.uplink_programs import UplinkPrograms
from nodenet.bpf.loader import SOCK_SERVICE
from nodenet.bpf.probe import available
from nodenet.cni import podmtu
from nodenet.engine import Engine
from nodenet.errors import NodenetError
from nodenet.model import IPAddress, Node, ObjectRef
from nodenet.store import Snapshot

log = logging.getLogger(__name__)

# Seconds between two checks of the folder of endpoint files.
POLL_SECONDS = 1.0
# Seconds between two collections of expired connections.
COLLECT_SECONDS = 60.0
# Seconds between two checks of other programs' rules.
FOREIGN_SECONDS = 30.0


class Keepers:
    """All keepers, with a common start and a common end."""

    def __init__(self, datapath: Datapath, engine: Engine) -> None:
        config, programs = datapath.config, datapath.loaded.programs
        self._engine = engine
        self._node_name = config.node_name
        self._host = Host(config.uplink)
        self._run_dir = config.run_dir
        self._pod_mtu = config.pod_mtu
        self.routes = RouteKeeper(self._host.sync_routes, config.resync_seconds)
        self.uplink = UplinkKeeper(
            config.uplink, self._host.uplink, self._own_addresses, self._store_mtu, self.routes.recheck
        )
        self.uplink_programs = UplinkPrograms(
            partial(self._sync_uplinks, config.uplink if config.serves_uplinks else None, programs),
            enabled=config.serves_uplinks,
        )
        self.source_ports = SourcePorts(
            config.run_dir, config.source_port_range if config.serves_uplinks else None, self._served_ports
        )
        self.conflist = ConflistKeeper(config)
        self.host_ports = HostPortOwner(config, engine.serve_host_ports)
        self.masquerade = Masquerade(config, self._nodes_known)
        self.foreign_rules = ForeignRules(
            min(FOREIGN_SECONDS, config.resync_seconds), config.services, self._pod_families
        )
        self.addresses = OwnAddresses(self._host.local_addresses, engine.own_addresses)
        self.endpoints = Endpoints(config.run_dir, self._host, engine, programs)
        self.sockets = SocketKeeper(
            partial(_places, engine, config.node_name),
            Peers(programs[SOCK_SERVICE], datapath.tables["nn_sock_revnat"]),
            partial(_service_name, engine),
            config.resync_seconds,
            available(datapath.features, SOCK_DESTROY),
        )
        self.connections = ConnectionKeeper(
            datapath.tables["nn_ct"],
            datapath.tables["nn_nat"],
            partial(_pods, engine),
            min(COLLECT_SECONDS, config.resync_seconds),
        )
        self.evictions = EvictionWatch(datapath.tables["nn_metrics"], self.connections.largest_of)
        self.integrity = Integrity(self._host, datapath, programs, self.endpoints, partial(_drift, engine))

    async def start(self) -> int:
        """Call it first. Reads the endpoints and the node's addresses. Endpoints that the plugin created without the
        agent get their programs now, which cut them off until their rules are known. Returns how many programs were
        attached."""
        await self.endpoints.read()
        isolated = await self.endpoints.isolate()
        await self.addresses.refresh()
        await self.host_ports.refresh()
        await self.uplink.refresh()
        await self.source_ports.refresh()
        return isolated

    def pod_mtu(self) -> int:
        """The MTU of new pods; 0: not known. May be called from any thread."""
        return self._pod_mtu or self.uplink.mtu()

    async def run(self, ready: asyncio.Event) -> None:
        """Run until cancelled. Some keepers start when `ready` is set: all programs have been attached once."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                self.routes.keep(self._wanted_routes, partial(self._engine.next_change, kinds.NODE)), name="routes"
            )
            tasks.create_task(self.sockets.keep(), name="sockets")
            tasks.create_task(self.connections.keep(), name="connections")
            tasks.create_task(self.evictions.keep(), name="evictions")
            tasks.create_task(self.addresses.keep(), name="addresses")
            tasks.create_task(self.uplink.keep(partial(self._engine.next_change, kinds.NODE)), name="uplink")
            tasks.create_task(self.uplink_programs.keep(ready), name="uplink programs")
            tasks.create_task(self.source_ports.keep(), name="source ports")
            tasks.create_task(self.conflist.keep(ready), name="conflist")
            tasks.create_task(self.host_ports.keep(), name="hostPorts")
            tasks.create_task(self.masquerade.keep(), name="masquerade")
            tasks.create_task(self.foreign_rules.keep(), name="foreign rules")
            tasks.create_task(self.integrity.keep(ready), name="integrity")
            tasks.create_task(self._keep_endpoints(ready), name="endpoints")

    def close(self) -> None:
        """Call it after `run` has ended."""
        self._host.close()

    def problems(self) -> list[str]:
        """One sentence for each current problem, and for each repair of the last hour."""
        return [
            *self.endpoints.unpoliced.values(),
            *self.integrity.problems,
            *self.integrity.recent(),
            *self.uplink.problems,
            *self.uplink_programs.problems,
            *self.source_ports.problems,
            *self.routes.problems,
            *self.conflist.problems,
            *self.host_ports.problems,
            *self.masquerade.problems,
            *self.foreign_rules.problems,
            *self.sockets.problems,
            *self.connections.problems,
            *self.evictions.problems(),
        ]

    async def _keep_endpoints(self, ready: asyncio.Event) -> None:
        """Take over endpoints that the plugin created or deleted while it could not reach the agent."""
        await ready.wait()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.endpoints.sync_from_disk()
            except (NodenetError, OSError) as error:
                log.warning("endpoint files could not be read: %s", error)

    async def _sync_uplinks(
        self, name: str | None, programs: Mapping[str, int], before: Iterable[str] | None
    ) -> uplink_programs.Synced:
        node = own_node(self._engine, self._node_name)
        ends = None if name is None else outside.ends(self._engine.current, node, name)
        return await self._host.run(uplink_programs.sync, ends, programs, before)

    def _served_ports(self) -> frozenset[int] | None:
        return outside.served_ports(self._engine.current, self.addresses.known)

    def _own_addresses(self) -> tuple[IPAddress, ...]:
        node = own_node(self._engine, self._node_name)
        return node.addresses if node else ()

    def _pod_families(self) -> list[int]:
        node = own_node(self._engine, self._node_name)
        return sorted({network.version for network in node.pod_cidrs}) if node else []

    def _store_mtu(self, _uplink: int) -> None:
        try:
            podmtu.store(self._run_dir, self.pod_mtu())
        except OSError as error:
            # Only the plugin without an agent reads it.
            log.warning("%s: pod-mtu: %s", self._run_dir, error)

    def _nodes_known(self) -> Snapshot | None:
        return self._engine.snapshot() if kinds.NODE not in self._engine.missing else None

    def _wanted_routes(self) -> Wanted | None:
        snapshot = self._nodes_known()
        return None if snapshot is None else wanted_routes(snapshot, self._node_name)


def own_node(engine: Engine, name: str) -> Node | None:
    """This node's object, as last fed; None if the API has not sent it."""
    return engine.snapshot().nodes.get(ObjectRef("", name))


def _places(engine: Engine, node_name: str) -> list[Place]:
    """The namespaces whose sockets our programs translate: the node's and those of all endpoints, each once."""
    pods = {endpoint.netns: str(endpoint.pod) for endpoint in engine.snapshot().endpoints.values()}
    return [Place(f"node {node_name}", None), *(Place(f"pod {pod}", netns) for netns, pod in pods.items())]


def _pods(engine: Engine) -> dict[int, str]:
    return {endpoint.endpoint_id: str(endpoint.pod) for endpoint in engine.snapshot().endpoints.values()}


def _service_name(engine: Engine, number: int) -> str:
    return engine.current.service_name(number)


def _drift(engine: Engine) -> int:
    return engine.stats.drift
