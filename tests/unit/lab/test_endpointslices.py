"""From Services and pods to EndpointSlices."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.controllers.endpointslice import CHANGED, EndpointSlices
from nodenet.lab.controllers.kubernetes_service import Endpoint
from nodenet.lab.controllers.slices_plan import LIMIT, MANAGED_BY, SERVICE_NAME, plan

from .control_plane import control_plane, service, workload

Obj = dict[str, Any]


def pod(number: int, *, ready: bool = True, deleting: bool = False, phase: str = "Running", port: int = 8080) -> Obj:
    metadata = {"name": f"web-{number}", "namespace": "default", "uid": f"uid-{number}"}
    if deleting:
        metadata["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    container = {"name": "c", "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}
    ips = [{"ip": f"10.0.{number // 250}.{number % 250}"}, {"ip": f"fd00::{number + 1:x}"}]
    conditions = [{"type": "Ready", "status": str(ready)}]
    status = {"phase": phase, "podIPs": ips, "conditions": conditions}
    return {"metadata": metadata, "spec": {"nodeName": "node1", "containers": [container]}, "status": status}


def stored(**spec: Any) -> Obj:
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]
    body = {"ipFamilies": ["IPv4"], "clusterIP": "10.96.0.5", "ports": ports, **spec}
    return {"metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"team": "a"}}, "spec": body}


def addresses(slices: list[Obj]) -> list[str]:
    return [address for s in slices for e in s["endpoints"] for address in e["addresses"]]


def test_an_endpoint_has_its_place_and_conditions() -> None:
    (made,) = plan(stored(), [pod(1)], {"node1": "z1"}, []).create
    assert made["metadata"]["labels"] == {
        "team": "a",
        SERVICE_NAME: "web",
        MANAGED_BY: "endpointslice-controller.k8s.io",
    }
    assert made["metadata"]["generateName"] == "web-"
    assert made["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert made["endpoints"] == [
        {
            "addresses": ["10.0.0.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1", "uid": "uid-1"},
            "nodeName": "node1",
            "zone": "z1",
        }
    ]


@pytest.mark.parametrize(
    ("options", "spec", "wanted"),
    [
        ({"ready": False}, {}, (False, False, False)),
        ({"deleting": True}, {}, (False, True, True)),
        ({"deleting": True, "ready": False}, {}, (False, False, True)),
        ({"ready": False}, {"publishNotReadyAddresses": True}, (True, False, False)),
        ({"deleting": True}, {"publishNotReadyAddresses": True}, (True, True, True)),
    ],
)
def test_conditions(options: Obj, spec: Obj, wanted: tuple[bool, bool, bool]) -> None:
    (made,) = plan(stored(**spec), [pod(1, **options)], {}, []).create
    conditions = made["endpoints"][0]["conditions"]
    assert (conditions["ready"], conditions["serving"], conditions["terminating"]) == wanted


def test_pods_with_different_numbers_for_a_name_are_in_slices_apart() -> None:
    made = plan(stored(), [pod(1), pod(2, port=9090), pod(3)], {}, []).create
    assert sorted((s["ports"][0]["port"], len(s["endpoints"])) for s in made) == [(8080, 2), (9090, 1)]


def test_one_slice_for_each_family() -> None:
    made = plan(stored(ipFamilies=["IPv4", "IPv6"]), [pod(1)], {}, []).create
    assert [(s["addressType"], addresses([s])) for s in made] == [("IPv4", ["10.0.0.1"]), ("IPv6", ["fd00::2"])]


def test_finished_pods_and_those_without_address_are_left_out() -> None:
    new = pod(2)
    del new["status"]["podIPs"]
    (made,) = plan(stored(), [pod(1, phase="Succeeded"), new], {}, []).create
    assert (made["endpoints"], made["ports"]) == ([], [])


def test_a_named_port_that_a_pod_does_not_have_is_left_out() -> None:
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "http"},
    ]
    (made,) = plan(stored(ports=ports), [pod(1)], {}, []).create
    assert [port["name"] for port in made["ports"]] == ["http"]


def apply_plan(slices: list[Obj], service_: Obj, pods: list[Obj]) -> list[Obj]:
    todo = plan(service_, pods, {}, slices)
    gone = {s["metadata"]["name"] for s in todo.delete} | {s["metadata"]["name"] for s in todo.update}
    used = {s["metadata"]["name"] for s in slices}
    free = (name for name in map(str, range(1000)) if name not in used)
    new = [{**s, "metadata": {**s["metadata"], "name": next(free)}} for s in todo.create]
    return [s for s in slices if s["metadata"]["name"] not in gone] + todo.update + new


def test_at_most_a_hundred_to_a_slice_and_few_slices_touched() -> None:
    slices = apply_plan([], stored(), [pod(n) for n in range(250)])
    assert sorted(len(s["endpoints"]) for s in slices) == [50, 100, 100]
    before = {s["metadata"]["name"]: s for s in slices}
    slices = apply_plan(slices, stored(), [pod(n) for n in range(251)])
    assert sum(before.get(s["metadata"]["name"]) != s for s in slices) == 1
    assert apply_plan(slices, stored(), [pod(n) for n in range(251)]) == slices
    assert [s["endpoints"] for s in apply_plan(slices, stored(), [])] == [[]]


@given(st.lists(st.tuples(st.sets(st.integers(0, 400), max_size=300), st.booleans()), max_size=4))
def test_whatever_changes_the_slices_say_it(rounds: list[tuple[set[int], bool]]) -> None:
    slices: list[Obj] = []
    for numbers, other in rounds:
        pods = [pod(n, port=9090 if other and n % 2 else 8080) for n in sorted(numbers)]
        slices = apply_plan(slices, stored(), pods)
        assert sorted(addresses(slices)) == sorted(p["status"]["podIPs"][0]["ip"] for p in pods)
        assert all(len(s["endpoints"]) <= LIMIT for s in slices)
        ports = {a: s["ports"][0]["port"] for s in slices for a in addresses([s])}
        assert all(
            ports[p["status"]["podIPs"][0]["ip"]] == p["spec"]["containers"][0]["ports"][0]["containerPort"]
            for p in pods
        )
        todo = plan(stored(), pods, {}, slices)
        assert (todo.create, todo.update, todo.delete) == ([], [], [])


async def test_slices_follow_the_pods() -> None:
    async with control_plane(cidrs=("10.96.0.0/16", "fd00:10:96::/112")) as plane:
        await plane.client.create(service("web", ipFamilyPolicy="PreferDualStack"))
        await plane.until("EndpointSlice", lambda s: len(s) == 2 and not addresses(s))
        await plane.client.create(workload("Deployment", "web", 2))
        pods = await plane.ready(2)
        wanted = sorted(entry["ip"] for p in pods for entry in p["status"]["podIPs"])
        await plane.until("EndpointSlice", lambda s: sorted(addresses(s)) == wanted)
        await plane.kubelet.set_ready(pods[0], False)
        await plane.until(
            "EndpointSlice", lambda s: sum(e["conditions"]["ready"] for x in s for e in x["endpoints"]) == 2
        )
        await plane.client.patch("Pod", pods[0]["metadata"]["name"], {"metadata": {"labels": {"app": "other"}}})
        gone = [entry["ip"] for entry in pods[0]["status"]["podIPs"]]
        await plane.until("EndpointSlice", lambda s: not set(gone) & set(addresses(s)))
        await plane.client.patch("Service", "web", {"spec": {"selector": {"app": "other"}}})
        await plane.until("EndpointSlice", lambda s: sorted(addresses(s)) == sorted(gone))
        await plane.client.delete("Service", "web")
        await plane.until("EndpointSlice", lambda s: not s)


async def test_a_slice_says_when_its_pods_changed(api: ApiServer) -> None:
    client, times = api.client, iter(("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"))
    controller = EndpointSlices(client, lambda: next(times))
    key = ("default", "web")
    await client.create(service("web"))
    controller.keys("Service", None, await client.get("Service", "web", "default"))

    async def change(address: str) -> str:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{address[-1]}", "labels": {"app": "web"}}}
        made = await client.create({**pod, "spec": {"containers": [{"name": "c", "image": "x"}]}})
        status = {"phase": "Running", "podIPs": [{"ip": address}], "podIP": address}
        now = await client.update({**made, "status": status}, "status")
        # Several changes before one sync: the first one counts.
        assert list(controller.keys("Pod", made, now)) == [key]
        controller.keys("Pod", now, now)
        await controller.sync(key)
        return await annotation()

    async def annotation() -> str:
        (found,) = (await client.list("EndpointSlice", "default")).items
        return str(found["metadata"]["annotations"][CHANGED])

    assert await change("10.0.0.1") == "2026-01-01T00:00:00.5Z"
    # Nothing about pods: the time stays.
    await controller.sync(key)
    assert await annotation() == "2026-01-01T00:00:00.5Z"
    assert await change("10.0.0.2") == "2026-01-01T00:00:01Z"


async def test_a_service_without_selector_is_ignored() -> None:
    async with control_plane() as plane:
        obj = service("far")
        del obj["spec"]["selector"]
        await plane.client.create(obj)
        own = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "far-1", "labels": {SERVICE_NAME: "far"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}],
            "ports": [{"port": 80}],
        }
        await plane.client.create(own)
        await plane.client.create(service("web"))
        slices = await plane.until("EndpointSlice", lambda s: len(s) == 2)
        assert slices[0]["metadata"]["name"] == "far-1"


async def test_the_kubernetes_service_is_there_and_comes_back() -> None:
    endpoint = Endpoint(["10.1.1.1", "fd00::1"], 6443)
    async with control_plane(cidrs=("10.96.0.0/16", "fd00:10:96::/112"), endpoint=endpoint) as plane:
        (found,) = await plane.until("Service", lambda s: len(s) == 1)
        assert found["metadata"]["name"] == "kubernetes"
        assert found["spec"]["clusterIPs"] == ["10.96.0.1"]
        slices = await plane.until("EndpointSlice", lambda s: len(s) == 2)
        assert addresses(slices) == ["10.1.1.1", "fd00::1"]
        uid = found["metadata"]["uid"]
        await plane.client.delete("Service", "kubernetes")
        await plane.until("Service", lambda s: bool(s) and s[0]["metadata"]["uid"] != uid)
