"""The HTTP answers that load balancers and cluster operators know from kube-proxy.

:10256/healthz   200 if Services are in force and this node is eligible for new traffic, else 503
:10256/livez     the same without the node's eligibility
/proxyMode       one word
:10249/metrics   kubeproxy_* (kubeproxy.py), beside /healthz, which is always 200 there, and /proxyMode
health check node port, any path: 200 if this node has ready endpoints of the Service and serves traffic from outside,
else 503
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from aiohttp import web

from nodenet.metrics.server import metrics_routes

PROXY_MODE = "ebpf"


@dataclass(frozen=True, slots=True)
class ProxyState:
    """`healthy`: the maps are up to date with the API's Services. `eligible`: the node may get new traffic from load
    balancers. `last_updated`: when the maps were last known to be right, in seconds since the epoch."""

    healthy: bool
    eligible: bool
    last_updated: float


class ProxySource(Protocol):
    """The state of one agent."""

    def state(self) -> ProxyState:
        """The current state."""

    def local_endpoints(self, namespace: str, name: str) -> int:
        """The number of ready endpoints of a Service on this node."""

    def serves_outside(self) -> bool:
        """Whether traffic from outside reaches them: a load balancer must not send any before."""


def proxy_routes(
    source: ProxySource, count: Callable[[str, int], None], now: type[datetime] = datetime
) -> list[web.RouteDef]:
    """/healthz, /livez and /proxyMode. `count` is called with "healthz" or "livez" and the status of each answer."""

    def answer(path: str, good: bool, state: ProxyState, **more: bool) -> web.Response:
        times = {
            "lastUpdated": datetime.fromtimestamp(state.last_updated, UTC).isoformat(),
            "currentTime": now.now(UTC).isoformat(),
        }
        status = 200 if good else 503
        count(path, status)
        return _json({**times, **more}, status)

    async def healthz(_request: web.Request) -> web.Response:
        state = source.state()
        return answer("healthz", state.healthy and state.eligible, state, nodeEligible=state.eligible)

    async def livez(_request: web.Request) -> web.Response:
        state = source.state()
        return answer("livez", state.healthy, state)

    return [web.get("/healthz", healthz), web.get("/livez", livez), *mode_routes()]


def metrics_port_routes(text: Callable[[], bytes]) -> list[web.RouteDef]:
    """What kube-proxy serves on its metrics port. `text`: its metrics, as for metrics_routes."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    return [*metrics_routes(text), web.get("/healthz", healthz), *mode_routes()]


def mode_routes() -> list[web.RouteDef]:
    """/proxyMode"""

    async def mode(_request: web.Request) -> web.Response:
        return web.Response(text=PROXY_MODE)

    return [web.get("/proxyMode", mode)]


def service_routes(source: ProxySource, namespace: str, name: str) -> list[web.RouteDef]:
    """The answers on the health check node port of one Service."""

    async def show(_request: web.Request) -> web.Response:
        count = source.local_endpoints(namespace, name)
        healthy = source.state().healthy and source.serves_outside()
        body = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        response = _json(body, 200 if count and healthy else 503)
        response.headers["X-Load-Balancing-Endpoint-Weight"] = str(count)
        return response

    return [web.route("*", "/{path:.*}", show)]


def _json(body: dict[str, object], status: int) -> web.Response:
    response = web.json_response(body, status=status)
    # kube-proxy's value has no charset.
    response.headers["Content-Type"] = "application/json"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
