"""Keeps one HTTP server for each healthCheckNodePort, so that load balancers find the nodes with endpoints of a Service
with externalTrafficPolicy Local."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from nodenet.compile.state import HealthCheck
from nodenet.engine import Engine
from nodenet.errors import NodenetError
from nodenet.metrics.proxy import ProxyState, service_routes
from nodenet.metrics.server import HttpServer
from nodenet.model import Node, ObjectRef

log = logging.getLogger(__name__)

# Seconds between two looks at the newest compilation.
POLL_SECONDS = 0.5
# The cluster autoscaler's taint of a node that it removes (KEP-3836).
_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


def wanted(checks: Mapping[ObjectRef, HealthCheck]) -> dict[int, ObjectRef]:
    """The Service of each port. If two Services have one port, the first by name gets it: the API assigns a port
    once."""
    ports: dict[int, ObjectRef] = {}
    for ref in sorted(checks):
        ports.setdefault(checks[ref].port, ref)
    return ports


def eligible(node: Node | None) -> bool:
    """Whether load balancers may send new traffic to the node. An unknown node: yes, as with kube-proxy."""
    return node is None or not (node.deleting or _TO_BE_DELETED in node.taints)


class ServiceHealth:
    """Implements nodenet.metrics.proxy.ProxySource. `healthy`: whether the agent works. `why_not_outside`: why traffic
    from outside is not served; "" if it is."""

    def __init__(
        self,
        engine: Engine,
        node_name: str,
        healthy: Callable[[], bool],
        why_not_outside: Callable[[], str],
        *,
        services: bool,
    ) -> None:
        self._engine = engine
        self._node_name = node_name
        self._healthy = healthy
        self._why_not_outside = why_not_outside
        self._services = services
        self._checks: Mapping[ObjectRef, HealthCheck] = {}
        self._wanted: dict[int, ObjectRef] = {}
        self._servers: dict[int, tuple[ObjectRef, HttpServer]] = {}
        self._failed: dict[int, str] = {}

    def state(self) -> ProxyState:
        node = self._engine.current.snapshot.nodes.get(ObjectRef("", self._node_name))
        return ProxyState(self._healthy(), eligible(node), self._engine.stats.last_sync)

    def local_endpoints(self, namespace: str, name: str) -> int:
        check = self._checks.get(ObjectRef(namespace, name))
        return check.local_endpoints if check is not None else 0

    def serves_outside(self) -> bool:
        return not self._why_not_outside()

    def problems(self) -> list[str]:
        """One sentence for each port that cannot be opened, and one if all of them answer 503."""
        found = [f"healthCheckNodePort {port}: {self._failed[port]}" for port in sorted(self._failed)]
        why = self._why_not_outside() if self._wanted else ""
        return [*found, f"healthCheckNodePort: all answer 503: {why}"] if why else found

    async def run(self) -> None:
        """Keep the servers until cancelled, then stop them."""
        if not self._services:
            return
        try:
            while True:
                await self.sync()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            for _, server in self._servers.values():
                await server.stop()
            self._servers.clear()

    async def sync(self) -> None:
        """Start and stop servers as the newest compilation says. A port that could not be opened is tried again."""
        checks = self._engine.current.names.health_checks
        if checks is not self._checks:
            self._checks, self._wanted = checks, wanted(checks)
        for port, (ref, server) in list(self._servers.items()):
            if self._wanted.get(port) != ref:
                del self._servers[port]
                await server.stop()
        self._failed = {port: why for port, why in self._failed.items() if port in self._wanted}
        for port, ref in self._wanted.items():
            if port not in self._servers:
                await self._start(port, ref)

    async def _start(self, port: int, ref: ObjectRef) -> None:
        server = HttpServer("healthCheckNodePort", service_routes(self, ref.namespace, ref.name))
        try:
            # All addresses of the node.
            await server.start(f":{port}")
        except NodenetError as error:
            if port not in self._failed:
                log.warning("Service %s: %s", ref, error)
            self._failed[port] = f"Service {ref}: {error}"
            return
        self._failed.pop(port, None)
        self._servers[port] = ref, server
