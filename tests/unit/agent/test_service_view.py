"""`service list` and `service show`: what is used is what the maps have, and the reasons are those of the choice."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from nodenet.agent.service_rows import Counts, Traffic, services
from nodenet.agent.service_view import service_views
from nodenet.cli.service import view_text
from nodenet.compile.state import LocalNode
from nodenet.engine import Compiled, Engine
from nodenet.model import Node, ServicePort, ServiceType, SliceEndpoint
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import listings
from nodenet.testing import fake_tables
from tests.unit.compile.build import TCP, service, slice_

NODE = Node("node1", (ip_address("172.30.0.11"),), labels={"topology.kubernetes.io/zone": "a"})


def end(address: str, node: str = "node1", **more: Any) -> SliceEndpoint:
    return SliceEndpoint((ip_address(address),), node_name=node, **more)


def compiled(*objects: object) -> Compiled:
    engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
    engine.feed(*listings([NODE, *objects]))
    engine.run_once()
    return engine.current


def view(*objects: object, only: str = "") -> dict[str, Any]:
    (found,) = service_views(compiled(*objects), Traffic(), "node1", only)
    return found


def reasons(found: dict[str, Any]) -> dict[str, tuple[list[str], dict[str, str]]]:
    return {row["backend"]: (row["usedBy"], row["unused"]) for row in found["backends"]}


def test_each_endpoint_is_used_or_has_a_reason() -> None:
    slices = slice_(
        "web",
        end("10.0.0.1"),
        end("10.0.0.2", ready=False, serving=False),
        end("10.0.0.3", ready=False, serving=True, terminating=True),
        end("10.0.0.4", ready=False, serving=False, terminating=True),
        end("fd00::4"),
    )
    found = view(service("web", "10.96.0.1"), slices)
    assert reasons(found) == {
        "10.0.0.1:8080": (["ClusterIP"], {}),
        "10.0.0.2:8080": ([], {"ClusterIP": "not ready"}),
        "10.0.0.3:8080": ([], {"ClusterIP": "it terminates, and ready ones exist"}),
        "10.0.0.4:8080": ([], {"ClusterIP": "not ready"}),
        "[fd00::4]:8080": ([], {"": "the Service has no IPv6 address"}),
    }
    states = [row["state"] for row in found["backends"]]
    assert states == ["ready", "not ready", "terminating, serves", "terminating", "ready"]


def test_a_terminating_one_is_used_if_none_is_ready() -> None:
    last = end("10.0.0.3", ready=False, serving=True, terminating=True)
    assert reasons(view(service("web", "10.96.0.1"), slice_("web", last))) == {"10.0.0.3:8080": (["ClusterIP"], {})}


def test_policies_concern_their_own_traffic() -> None:
    port = (ServicePort("", TCP, 80, 30080),)
    local = replace(service("web", "10.96.0.1", internal_local=True), ports=port, type=ServiceType.NODE_PORT)
    found = view(local, slice_("web", end("10.0.0.1"), end("10.0.1.1", "node2")))
    assert [(row["type"], row["scope"], len(row["backends"])) for row in found["addresses"]] == [
        ("ClusterIP", "all", 1),
        ("NodePort", "all", 2),
    ]
    assert reasons(found) == {
        "10.0.0.1:8080": (["ClusterIP", "NodePort"], {}),
        "10.0.1.1:8080": (["NodePort"], {"ClusterIP": "policy Local: it is on node2"}),
    }


def test_the_external_policy_is_for_traffic_from_outside() -> None:
    port = (ServicePort("", TCP, 80, 30080),)
    local = replace(service("web", "10.96.0.1", external_local=True), ports=port, type=ServiceType.NODE_PORT)
    found = view(local, slice_("web", end("10.0.0.1"), end("10.0.1.1", "node2")))
    rows = [(row["type"], row["scope"], row["trafficPolicy"], len(row["backends"])) for row in found["addresses"]]
    assert sorted(rows) == [
        ("ClusterIP", "all", "Cluster", 2),
        ("NodePort", "external", "Local", 1),
        ("NodePort", "internal", "Cluster", 2),
    ]
    assert reasons(found)["10.0.1.1:8080"] == (
        ["ClusterIP", "NodePort"],
        {"NodePort from outside": "policy Local: it is on node2"},
    )
    text = view_text(found)
    assert "by ClusterIP, NodePort; not by NodePort from outside: policy Local: it is on node2" in text
    assert "NodePort   from outside  172.30.0.11:30080" in text


def test_topology() -> None:
    ends = (end("10.0.0.1", for_zones=("a",)), end("10.0.1.1", "node2", for_zones=("b",)))
    found = reasons(view(service("web", "10.96.0.1"), slice_("web", *ends)))
    assert found["10.0.0.1:8080"] == (["ClusterIP"], {})
    assert found["10.0.1.1:8080"] == ([], {"ClusterIP": "topology: it is for zone b"})


def test_a_service_without_an_address_says_why() -> None:
    headless = service("web")
    foreign = service("other", "10.96.0.2", labels={"service.kubernetes.io/service-proxy-name": "x"})
    name = replace(service("name"), type=ServiceType.EXTERNAL_NAME)
    found = {
        row["service"]: row["noAddress"] for row in service_views(compiled(headless, foreign, name), Traffic(), "node1")
    }
    assert found == {
        "default/web": "headless",
        "default/name": "ExternalName: a name for DNS only",
        "default/other": "not served here: it has the label service.kubernetes.io/service-proxy-name",
    }


def test_names() -> None:
    objects = compiled(service("web", "10.96.0.1"), service("other", "10.96.0.2"))
    for only, expected in (("web", ["default/web"]), ("default/web", ["default/web"]), ("x/web", []), ("", 2)):
        shown = [row["service"] for row in service_views(objects, Traffic(), "node1", only)]
        assert (len(shown) if isinstance(expected, int) else shown) == expected
        listed = [row["service"] for row in services(objects, Traffic(), only)]
        assert sorted(listed) == sorted(shown)


def test_traffic_is_that_of_each_address() -> None:
    objects = compiled(replace(service("web", "10.96.0.1"), external_ips=(ip_address("192.0.2.1"),)))
    one, two = [row["id"] for row in services(objects, Traffic())]
    traffic = Traffic(Counts({one: 3}, {two: 4}, {one: 5}), Counts({one: 10}, {two: 20}, {two: 30}))
    rows = {row["id"]: row for row in services(objects, traffic)}
    assert [(rows[n]["flows"], rows[n]["opened"], rows[n]["dropped"]) for n in (one, two)] == [(13, 0, 5), (0, 24, 30)]
    # Allowed flows are not reported.
    unknown = Counts({}, None, {})
    assert [row["opened"] for row in services(objects, Traffic(unknown, unknown))] == [None, None]


def test_traffic_from_outside_is_counted_apart_where_it_has_its_own_backends() -> None:
    port = (ServicePort("", TCP, 80, 30080),)
    local = replace(service("web", "10.96.0.1", external_local=True), ports=port, type=ServiceType.NODE_PORT)
    objects = compiled(local, slice_("web", end("10.0.0.1"), end("10.0.1.1", "node2")))
    number = next(row["id"] for row in services(objects, Traffic()) if row["type"] == "NodePort")
    traffic = Traffic(Counts({}, {number: 1}, {}), Counts({}, {number: 2}, {}))
    rows = [row for row in services(objects, traffic) if row["type"] == "NodePort"]
    assert {row["scope"]: row["opened"] for row in rows} == {"internal": 1, "external": 2}


def test_text() -> None:
    web = replace(
        service("web", "10.96.0.1", affinity_seconds=60, external_local=True),
        type=ServiceType.LOAD_BALANCER,
        load_balancer_ips=(ip_address("192.0.2.1"),),
        source_ranges=(ip_network("10.0.0.0/8"),),
        health_check_node_port=30123,
    )
    text = view_text(view(web, slice_("web", end("10.0.0.1"), end("10.0.0.2", ready=False))))
    assert text.splitlines()[:5] == [
        "Service default/web: LoadBalancer",
        "  session affinity: ClientIP, 60 s",
        "  traffic policy: internal Cluster, external Local",
        "  source ranges of the load balancer: 10.0.0.0/8",
        "  health check node port: 30123",
    ]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("ClusterIP all 10.96.0.1:80 TCP - Cluster 1 0 0 0") for line in lines)
    assert any(line.endswith("node1 ready yes") for line in lines)
    assert any(line.endswith("node1 not ready no: not ready") for line in lines)


def test_text_without_endpoints() -> None:
    assert "  it has no endpoint" in view_text(view(service("web", "10.96.0.1"))).splitlines()
    assert view_text(view(service("web"))) == "Service default/web: ClusterIP\n  no address: headless"
