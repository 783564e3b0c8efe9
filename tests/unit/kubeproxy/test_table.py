"""The renderers' Services out of objects: which addresses, which backends, whose address a contested one is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nodenet.compile.backends import Here
from nodenet.kubeproxy.model import Backend, Service
from nodenet.kubeproxy.table import services
from nodenet.model import EndpointSlice, ObjectRef, Protocol, ServicePort, ServiceType, SliceEndpoint
from nodenet.model import Service as ApiService

HERE = Here("node1", "zone-a")


def service(name: str, *addresses: str, **fields: Any) -> ApiService:
    ports = fields.pop("ports", (ServicePort("http", Protocol.TCP, 80, fields.pop("node_port", 0)),))
    ips = tuple(map(ip_address, addresses))
    return ApiService(ObjectRef("shop", name), ServiceType.CLUSTER_IP, ips, ports, **fields)


def endpoints(name: str, *ends: SliceEndpoint, port: str = "http") -> EndpointSlice:
    ports = (ServicePort(port, Protocol.TCP, 8080),)
    return EndpointSlice(ObjectRef("shop", f"{name}-{len(ends)}"), ObjectRef("shop", name), ports, ends)


def end(address: str, node: str = "node2", **fields: Any) -> SliceEndpoint:
    return SliceEndpoint((ip_address(address),), node_name=node, **fields)


def made(objects: list[ApiService], *slices: EndpointSlice, version: int = 4) -> dict[str, Service]:
    return {s.full_name: s for s in services({o.ref: o for o in objects}, slices, HERE, version)}


def test_both_sets_of_endpoints() -> None:
    """Cluster and Local are decided independently; an endpoint of this node is marked."""
    ends = (end("10.244.1.5", "node1", ready=False, serving=True, terminating=True), end("10.244.2.5"))
    found = made([service("web", "10.96.0.5")], endpoints("web", *ends))["shop/web:http"]
    assert found.backends == (Backend("10.244.2.5", 8080),)
    assert found.local_backends == (Backend("10.244.1.5", 8080, here=True),)


def test_topology_is_that_of_the_compiler() -> None:
    near, far = end("10.244.2.5", for_zones=("zone-a",)), end("10.244.2.6", for_zones=("zone-b",))
    found = made([service("web", "10.96.0.5")], endpoints("web", near, far))
    assert found["shop/web:http"].backends == (Backend("10.244.2.5", 8080),)


@pytest.mark.parametrize(("version", "ip", "outside"), [(4, "10.96.0.5", "203.0.113.5"), (6, "fd00:96::5", "fd01::5")])
def test_one_family_at_a_time(version: int, ip: str, outside: str) -> None:
    both = service(
        "web",
        "10.96.0.5",
        "fd00:96::5",
        external_ips=tuple(map(ip_address, ("203.0.113.5", "fd01::5"))),
        load_balancer_ips=tuple(map(ip_address, ("203.0.113.6", "fd01::6"))),
        source_ranges=(ip_network("192.0.2.0/24"), ip_network("::/0")),
        node_port=30080,
        affinity_seconds=60,
        internal_local=True,
    )
    found = made([both], version=version)["shop/web:http"]
    assert (found.cluster_ip, found.external_ips, found.node_port) == (ip, (outside,), 30080)
    assert (found.affinity_seconds, found.internal_local) == (60, True)
    # A range with the prefix 0 means no restriction in its family.
    assert found.source_ranges == (("192.0.2.0/24",) if version == 4 else ())


def test_which_services_have_no_rules() -> None:
    """Headless ones, those of another proxy, those of the other family, and SCTP."""
    foreign = service("foreign", "10.96.0.6", labels={"service.kubernetes.io/service-proxy-name": "x"})
    sctp = service("sctp", "10.96.0.7", ports=(ServicePort("s", Protocol.SCTP, 80),))
    assert made([service("headless"), foreign, sctp, service("six", "fd00:96::5")]) == {}


def test_a_health_check_port_is_written_once() -> None:
    ports = (ServicePort("a", Protocol.TCP, 80), ServicePort("b", Protocol.TCP, 81))
    one = service("web", "10.96.0.5", ports=ports, external_local=True, health_check_node_port=31000)
    assert [s.health_check_node_port for s in made([one]).values()] == [31000, 0]
    cluster = replace(one, external_local=False)
    assert [s.health_check_node_port for s in made([cluster]).values()] == [0, 0]


def test_a_contested_address_has_one_owner() -> None:
    """A ClusterIP, then a load balancer's address, then an external IP; then the first by name."""
    shared = (ip_address("203.0.113.5"), ip_address("10.96.0.5"))
    found = made(
        [
            service("a", "10.96.0.6", external_ips=shared),
            service("b", "10.96.0.7", load_balancer_ips=shared),
            service("c", "10.96.0.8", load_balancer_ips=shared[:1]),
            service("z", "10.96.0.5"),
        ]
    )
    assert [found[f"shop/{name}:http"].external_ips for name in "abcz"] == [(), (), (), ()]
    assert found["shop/b:http"].load_balancer_ips == ("203.0.113.5",)
    assert found["shop/c:http"].load_balancer_ips == ()
