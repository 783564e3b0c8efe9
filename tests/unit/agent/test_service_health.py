"""Health check node ports and kube-proxy's health endpoint, over real HTTP servers."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

import aiohttp
import pytest

from nodenet.agent.service_health import ServiceHealth, eligible, wanted
from nodenet.compile.health_checks import health_check
from nodenet.compile.state import HealthCheck, LocalNode
from nodenet.engine import Engine
from nodenet.metrics.proxy import proxy_routes
from nodenet.metrics.server import HttpServer
from nodenet.model import Node, ObjectRef, Service, ServicePort, ServiceType, SliceEndpoint
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Op, listings
from nodenet.testing import fake_tables
from tests.unit.compile.build import TCP, slice_


def service(port: int, name: str = "web", **more: Any) -> Service:
    fields: dict[str, Any] = {"external_local": True, "health_check_node_port": port, **more}
    return Service(
        ObjectRef("default", name),
        fields.pop("type", ServiceType.LOAD_BALANCER),
        (ip_address("10.96.0.1"),),
        (ServicePort("", TCP, 80),),
        **fields,
    )


def end(last: int, node: str = "node1", ready: bool = True) -> SliceEndpoint:
    return SliceEndpoint((ip_address(f"10.0.0.{last}"),), ready, True, not ready, node)


def test_ready_endpoints_of_this_node_count_once() -> None:
    one = service(30000)
    slices = [
        slice_("web", end(1), end(2), end(3, "node2"), end(4, ready=False)),
        slice_("web", end(1), name="web-2"),
        # The same pods in the other family.
        slice_("web", SliceEndpoint((ip_address("fd00::1"),), node_name="node1"), name="web-6"),
    ]
    assert health_check(one, slices, "node1") == HealthCheck(30000, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"type": ServiceType.NODE_PORT},
        {"external_local": False},
        {"health_check_node_port": 0},
        {"labels": {"service.kubernetes.io/service-proxy-name": "x"}},
    ],
)
def test_services_without_a_server(change: dict[str, Any]) -> None:
    assert health_check(service(30000, **change), (), "node1") is None


def test_one_port_has_one_service() -> None:
    check = HealthCheck(30000, 0)
    first, last = ObjectRef("default", "a"), ObjectRef("default", "z")
    assert wanted({last: check, first: check}) == {30000: first}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, True),
        (Node("n"), True),
        (Node("n", deleting=True), False),
        (Node("n", taints=frozenset({"ToBeDeletedByClusterAutoscaler"})), False),
        (Node("n", taints=frozenset({"other"})), True),
    ],
)
def test_eligible(node: Node | None, expected: bool) -> None:
    assert eligible(node) is expected


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    def __init__(self) -> None:
        self.healthy = True
        self.why_not = ""
        self.engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
        self.engine.feed(*listings([Node("node1")]))
        self.health = ServiceHealth(self.engine, "node1", lambda: self.healthy, lambda: self.why_not, services=True)

    async def now(self, *objects: object, op: Op = Op.MODIFIED) -> None:
        self.engine.feed(*(Delta(op, obj) for obj in objects))
        self.engine.run_once()
        await self.health.sync()


async def get(port: int, path: str = "/") -> tuple[int, Any, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        body = await answer.text()
        kind = answer.headers["Content-Type"]
        return answer.status, await answer.json() if kind == "application/json" else body, dict(answer.headers)


async def test_a_health_check_node_port(free_port: int) -> None:
    world = World()
    await world.now(service(free_port), slice_("web", end(1), end(2, "node2")))
    status, body, headers = await get(free_port, "/any/path")
    assert status == 200
    assert body == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "1"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Type"] == "application/json"
    world.healthy = False
    status, body, _ = await get(free_port)
    assert (status, body["serviceProxyHealthy"], body["localEndpoints"]) == (503, False, 1)
    world.healthy = True
    assert (await get(free_port))[0] == 200
    # A load balancer must not send what would not be served.
    world.why_not = "no interface has the programs"
    status, body, _ = await get(free_port)
    assert (status, body["serviceProxyHealthy"], body["localEndpoints"]) == (503, False, 1)
    assert world.health.problems() == ["healthCheckNodePort: all answer 503: no interface has the programs"]
    world.why_not = ""
    await world.now(slice_("web", end(1, ready=False), end(2, "node2")))
    status, body, _ = await get(free_port)
    assert (status, body["localEndpoints"]) == (503, 0)
    # Another Service's endpoints do not count.
    await world.now(service(0, "other"), slice_("other", end(5)))
    assert (await get(free_port))[1]["localEndpoints"] == 0
    await world.now(service(free_port), op=Op.DELETED)
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(free_port)
    world.why_not = "x"
    assert world.health.problems() == [], "no Service has such a port"


async def test_a_port_in_use_is_a_problem_until_it_is_free(free_port: int) -> None:
    world = World()
    with socket.create_server(("127.0.0.1", free_port)):
        await world.now(service(free_port))
        (problem,) = world.health.problems()
        assert problem.startswith(f"healthCheckNodePort {free_port}: Service default/web: healthCheckNodePort")
    await world.health.sync()
    assert world.health.problems() == []
    assert (await get(free_port))[0] == 503
    await world.now(service(free_port), op=Op.DELETED)


async def test_servers_end_with_the_agent(free_port: int) -> None:
    world = World()
    task = asyncio.create_task(world.health.run())
    world.engine.feed(Delta(Op.ADDED, service(free_port)))
    world.engine.run_once()
    async with asyncio.timeout(10):
        while True:
            try:
                await get(free_port)
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(free_port)


async def test_kube_proxys_endpoint() -> None:
    world = World()
    await world.now()
    counted: list[tuple[str, int]] = []
    server = HttpServer(
        "proxy_health_address", proxy_routes(world.health, lambda path, status: counted.append((path, status)))
    )
    port = await server.start("127.0.0.1:0")
    try:
        status, body, _ = await get(port, "/healthz")
        assert (status, body["nodeEligible"]) == (200, True)
        assert body.keys() == {"lastUpdated", "currentTime", "nodeEligible"}
        await world.now(Node("node1", deleting=True))
        status, body, _ = await get(port, "/healthz")
        assert (status, body["nodeEligible"]) == (503, False)
        status, body, _ = await get(port, "/livez")
        assert (status, body.keys()) == (200, {"lastUpdated", "currentTime"})
        world.healthy = False
        assert (await get(port, "/livez"))[0] == 503
        assert (await get(port, "/proxyMode"))[:2] == (200, "ebpf")
        assert counted == [("healthz", 200), ("healthz", 503), ("livez", 200), ("livez", 503)]
    finally:
        await server.stop()
