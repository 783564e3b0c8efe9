"""CustomResourceDefinitions and Events in the lab's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.lab.apiserver.status import ApiError
from tests.unit.lab.control_plane import control_plane
from tests.unit.lab.test_http import TABLE, get, lines

Obj = dict[str, Any]
GROUP = "policy.example.com"
BASE = f"/apis/{GROUP}/v1"
TENANTS = f"{BASE}/tenants"
MERGE = {"Content-Type": "application/merge-patch+json"}


def definition(plural: str = "tenants", kind: str = "Tenant", scope: str = "Cluster", **version: Any) -> Obj:
    v1 = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}, **version}
    names = {"plural": plural, "kind": kind, "shortNames": ["tn"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": scope, "names": names, "versions": [v1]},
    }


def tenant(name: str, kind: str = "Tenant", **fields: Any) -> Obj:
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name}, **fields}


@pytest.fixture
def api() -> ApiServer:
    return ApiServer(bookmark_seconds=0.05)


@pytest.fixture
async def http(api: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with serve(api, addresses=[("127.0.0.1", 0)]) as server, aiohttp.ClientSession(server.urls[0]) as session:
        yield session


async def code(http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **headers: str) -> int:
    async with http.request(method, path, json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_definition_makes_a_kind_and_its_removal_takes_it_away(http: aiohttp.ClientSession) -> None:
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert await code(http, "GET", TENANTS) == await code(http, "GET", BASE) == 404
    assert await code(http, "POST", definitions, definition()) == 201
    made = await get(http, f"{definitions}/tenants.{GROUP}")
    assert {c["type"]: c["status"] for c in made["status"]["conditions"]}["Established"] == "True"
    assert GROUP in [group["name"] for group in (await get(http, "/apis"))["groups"]]
    served = {r["name"]: r for r in (await get(http, BASE))["resources"]}
    assert served.keys() == {"tenants", "tenants/status"}
    assert (served["tenants"]["kind"], served["tenants"]["namespaced"]) == ("Tenant", False)

    assert await code(http, "POST", TENANTS, tenant("a", spec={"any": [1]}, other=1)) == 201
    found = await get(http, TENANTS)
    assert (found["kind"], found["items"][0]["spec"], found["items"][0]["other"]) == ("TenantList", {"any": [1]}, 1)
    assert (await get(http, TENANTS, Accept=TABLE))["rows"][0]["cells"][0] == "a"

    query = f"?watch=1&resourceVersion={found['metadata']['resourceVersion']}"
    async with http.get(TENANTS + query) as watch:
        assert await code(http, "DELETE", f"{definitions}/tenants.{GROUP}") == 200
        (gone,) = await lines(watch, 1)
        assert (gone["type"], gone["object"]["metadata"]["name"]) == ("DELETED", "a")
        async with asyncio.timeout(5):
            assert await watch.content.readline() == b""
    assert await code(http, "GET", TENANTS) == await code(http, "GET", BASE) == 404
    # Again, and nothing of before is there.
    assert await code(http, "POST", definitions, definition()) == 201
    assert (await get(http, TENANTS))["items"] == []


async def test_status_is_a_subresource_with_conflicts(api: ApiServer, http: aiohttp.ClientSession) -> None:
    await api.client.create(definition())
    made = await api.client.create(tenant("a", spec={"x": 1}, status={"ignored": True}))
    assert "status" not in made
    version = made["metadata"]["resourceVersion"]
    body = {"metadata": {"resourceVersion": version}, "spec": {"x": 2}, "status": {"ready": True}}
    assert await code(http, "PATCH", f"{TENANTS}/a/status", body, **MERGE) == 200
    assert await code(http, "PATCH", f"{TENANTS}/a/status", body, **MERGE) == 409
    now = await get(http, f"{TENANTS}/a")
    assert (now["spec"], now["status"], now["metadata"]["generation"]) == ({"x": 1}, {"ready": True}, 1)
    # What kubectl says of strategic patches to custom resources: 415.
    strategic = {"Content-Type": "application/strategic-merge-patch+json"}
    assert await code(http, "PATCH", f"{TENANTS}/a", {"spec": {}}, **strategic) == 415


async def test_without_the_subresource_status_is_a_field(api: ApiServer, http: aiohttp.ClientSession) -> None:
    await api.client.create(definition(subresources={}))
    await api.client.create(tenant("a", status={"x": 1}))
    assert await code(http, "PATCH", f"{TENANTS}/a/status", {"status": {}}, **MERGE) == 404
    assert await code(http, "PATCH", f"{TENANTS}/a", {"status": {"y": 2}}, **MERGE) == 200
    assert (await get(http, f"{TENANTS}/a"))["status"] == {"x": 1, "y": 2}


async def test_a_custom_kind_may_have_the_name_of_another(api: ApiServer, http: aiohttp.ClientSession) -> None:
    await api.client.create(definition("services", "Service", "Namespaced"))
    path = f"{BASE}/namespaces/default/services"
    assert await code(http, "POST", path, tenant("mine", "Service")) == 201
    assert [item["metadata"]["name"] for item in (await get(http, path))["items"]] == ["mine"]
    assert (await get(http, "/api/v1/services"))["items"] == []


async def test_versions_that_are_not_served_are_not_there(api: ApiServer, http: aiohttp.ClientSession) -> None:
    await api.client.create(definition(served=False))
    assert await code(http, "GET", TENANTS) == 404


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"name": "wrong"}}, "metadata.name"),
        ({"spec": {**definition()["spec"], "scope": "Everywhere"}}, "spec.scope"),
        ({"spec": {**definition()["spec"], "names": {}}}, "spec.names.plural"),
        ({"spec": {**definition()["spec"], "versions": []}}, "spec.versions"),
        ({"spec": {**definition()["spec"], "versions": [{"name": "v1"}]}}, "storage version"),
        ({"spec": {}}, "spec.group"),
    ],
)
async def test_what_is_wrong_with_a_definition_is_named(api: ApiServer, change: Obj, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        await api.client.create({**definition(), **change})


async def test_a_namespace_takes_its_custom_objects_along() -> None:
    async with control_plane() as cluster:
        api = cluster.api
        await api.client.create(definition(scope="Namespaced"))
        await api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        await api.client.create({**tenant("a"), "metadata": {"name": "a", "namespace": "shop"}})
        await api.client.delete("Namespace", "shop")
        await cluster.until("Namespace", lambda found: "shop" not in [n["metadata"]["name"] for n in found])
        assert (await api.client.list(f"tenants.{GROUP}")).items == []


def event(**fields: Any) -> Obj:
    about = {"kind": "Pod", "name": "web", "namespace": "default"}
    base = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "web.1"}, "involvedObject": about}
    return {**base, "reason": "Denied", "message": "no", "type": "Warning", "count": 1, **fields}


async def test_events_are_made_counted_and_shown(http: aiohttp.ClientSession) -> None:
    path = "/api/v1/namespaces/default/events"
    assert await code(http, "POST", path, event(lastTimestamp="2020-01-01T00:00:00Z")) == 201
    assert await code(http, "POST", path, event()) == 409
    assert await code(http, "PATCH", f"{path}/web.1", {"count": 2}, **MERGE) == 200
    row = (await get(http, path, Accept=TABLE))["rows"][0]["cells"]
    assert row[1:6] == ["Warning", "Denied", "pod/web", "no", 2]
    # An Event is in the namespace of its object; one about a Node is in default.
    assert await code(http, "POST", "/api/v1/namespaces/kube-public/events", event()) == 422
    node = event(metadata={"name": "n.1"}, involvedObject={"kind": "Node", "name": "n"})
    assert await code(http, "POST", path, node) == 201
