"""The API over HTTP, as a client library meets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from nodenet.lab.apiserver.access import ADMIN, Access
from nodenet.lab.apiserver.protobuf import MAGIC
from nodenet.lab.apiserver.server import ApiServer, serve

Obj = dict[str, Any]
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@pytest.fixture
def api() -> ApiServer:
    return ApiServer(bookmark_seconds=0.05, history=4)


@pytest.fixture
async def http(api: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with serve(api, addresses=[("127.0.0.1", 0)]) as server, aiohttp.ClientSession(server.urls[0]) as session:
        yield session


def pod(name: str, **labels: str) -> Obj:
    spec = {"containers": [{"name": "c", "image": "i"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


PODS = "/api/v1/namespaces/default/pods"


async def get(http: aiohttp.ClientSession, path: str, **headers: str) -> Obj:
    async with http.get(path, headers=headers) as response:
        found: Obj = await response.json()
        return found


async def lines(response: aiohttp.ClientResponse, count: int) -> list[Obj]:
    async with asyncio.timeout(5):
        return [json.loads(await response.content.readline()) for _ in range(count)]


async def test_health_version_and_discovery(http: aiohttp.ClientSession) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        async with http.get(path) as response:
            assert (response.status, await response.text()) == (200, "ok")
    assert (await get(http, "/version"))["gitVersion"].startswith("v1.")
    assert (await get(http, "/api"))["versions"] == ["v1"]
    groups = [group["name"] for group in (await get(http, "/apis"))["groups"]]
    assert groups == [
        "apiextensions.k8s.io",
        "apps",
        "batch",
        "discovery.k8s.io",
        "networking.k8s.io",
        "policy.networking.k8s.io",
    ]
    names = {r["name"] for r in (await get(http, "/apis/apps/v1"))["resources"]}
    assert {"deployments", "deployments/scale", "deployments/status"} <= names
    assert (await get(http, "/apis/apps"))["preferredVersion"]["groupVersion"] == "apps/v1"


@pytest.mark.parametrize(
    "path", ["/api/v2", "/apis/nope", "/apis/apps/v9", "/nope", "/api/v1/secrets", f"{PODS}/x/log"]
)
async def test_what_is_not_served_is_a_404_that_says_so(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        status = await response.json()
        assert response.status == 404
        assert (status["kind"], status["reason"]) == ("Status", "NotFound")
        assert "serves no" in status["message"]


async def test_objects(http: aiohttp.ClientSession) -> None:
    async with http.post(PODS, json=pod("a")) as response:
        assert response.status == 201
    async with http.post(PODS, json=pod("a")) as response:
        assert (response.status, (await response.json())["reason"]) == (409, "AlreadyExists")
    found = await get(http, f"{PODS}/a")
    found["metadata"]["labels"] = {"app": "x"}
    async with http.put(f"{PODS}/a", json=found) as response:
        assert response.status == 200
    async with http.put(f"{PODS}/a", json=found) as response:
        assert (response.status, (await response.json())["reason"]) == (409, "Conflict")
    merge = {"Content-Type": "application/merge-patch+json"}
    async with http.patch(f"{PODS}/a", data='{"metadata":{"labels":{"b":"c"}}}', headers=merge) as response:
        assert (await response.json())["metadata"]["labels"] == {"app": "x", "b": "c"}
    async with http.post(f"{PODS}/a/binding", json={"target": {"kind": "Node", "name": "n1"}}) as response:
        assert response.status == 201
    async with http.delete(f"{PODS}/a") as response:
        assert "deletionTimestamp" in (await response.json())["metadata"]
    async with http.delete(f"{PODS}/a", json={"gracePeriodSeconds": 0}) as response:
        assert (await response.json())["status"] == "Success"
    async with http.get(f"{PODS}/a") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("body", "code"),
    [("{", 400), ("[]", 400), ('{"kind":"Service"}', 400), ('{"metadata":3}', 400), ('{"metadata":{"name":"x"}}', 422)],
)
async def test_bodies_that_are_no_pods(http: aiohttp.ClientSession, body: str, code: int) -> None:
    async with http.post(PODS, data=body) as response:
        assert (response.status, (await response.json())["code"]) == (code, code)


async def test_lists_in_pages(http: aiohttp.ClientSession) -> None:
    for name in "abc":
        await (await http.post(PODS, json=pod(name))).release()
    first = await get(http, f"{PODS}?limit=2")
    assert first["metadata"]["remainingItemCount"] == 1
    second = await get(http, f"/api/v1/pods?limit=2&continue={first['metadata']['continue']}")
    assert [p["metadata"]["name"] for p in first["items"] + second["items"]] == ["a", "b", "c"]
    assert second["kind"] == "PodList"
    assert "continue" not in second["metadata"]


async def test_watch_over_http(http: aiohttp.ClientSession) -> None:
    version = (await get(http, PODS))["metadata"]["resourceVersion"]
    query = f"watch=1&allowWatchBookmarks=true&labelSelector=app%3Dx&resourceVersion={version}"
    async with http.get(f"{PODS}?{query}") as response:
        (bookmark,) = await lines(response, 1)
        assert bookmark["type"] == "BOOKMARK"
        assert bookmark["object"]["metadata"]["resourceVersion"] == version
        await (await http.post(PODS, json=pod("a", app="x"))).release()
        await (await http.delete(f"{PODS}/a")).release()
        seen: list[Obj] = []
        while len(seen) < 2:
            seen += [event for event in await lines(response, 1) if event["type"] != "BOOKMARK"]
        assert [event["type"] for event in seen] == ["ADDED", "DELETED"]


async def test_watch_ends_in_time(http: aiohttp.ClientSession) -> None:
    version = (await get(http, PODS))["metadata"]["resourceVersion"]
    async with (
        asyncio.timeout(5),
        http.get(f"{PODS}?watch=true&timeoutSeconds=1&resourceVersion={version}") as response,
    ):
        assert await response.read() == b""


async def test_a_watch_from_too_long_ago_is_an_error_event(http: aiohttp.ClientSession) -> None:
    version = (await get(http, PODS))["metadata"]["resourceVersion"]
    for number in range(10):
        await (await http.post(PODS, json=pod(f"p{number}"))).release()
    async with http.get(f"{PODS}?watch=1&resourceVersion={version}") as response:
        assert response.status == 200
        (event,) = await lines(response, 1)
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert await response.content.read() == b""


async def test_a_bad_selector_ends_a_watch_before_it_begins(http: aiohttp.ClientSession) -> None:
    async with http.get(f"{PODS}?watch=1&fieldSelector=spec.color%3Dred") as response:
        assert response.status == 400


async def test_watches_end_when_the_endpoint_stops(api: ApiServer) -> None:
    async with aiohttp.ClientSession() as session:
        async with serve(api, addresses=[("127.0.0.1", 0)]) as server:
            response = await session.get(f"{server.urls[0]}{PODS}?watch=1")
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(5):
                await response.content.read()


async def test_tables(http: aiohttp.ClientSession) -> None:
    await (await http.post(PODS, json=pod("a"))).release()
    table = await get(http, PODS, Accept=TABLE)
    assert table["kind"] == "Table"
    assert [c["name"] for c in table["columnDefinitions"]][:5] == ["Name", "Ready", "Status", "Restarts", "Age"]
    (row,) = table["rows"]
    assert row["cells"][:4] == ["a", "0/1", "Pending", "0"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    async with http.get(f"{PODS}?watch=1", headers={"Accept": TABLE}) as response:
        (event,) = await lines(response, 1)
        assert (event["type"], event["object"]["rows"][0]["cells"][0]) == ("ADDED", "a")


async def test_scale(http: aiohttp.ClientSession) -> None:
    path = "/apis/apps/v1/namespaces/default/deployments"
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    await (await http.post(path, json={"metadata": {"name": "d"}, "spec": spec})).release()
    scale = await get(http, f"{path}/d/scale")
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == ("Scale", {"replicas": 1}, "a=b")
    async with http.put(f"{path}/d/scale", json={**scale, "spec": {"replicas": 3}}) as response:
        assert response.status == 200
    async with http.put(f"{path}/d/scale", json={**scale, "spec": {"replicas": 4}}) as response:
        assert response.status == 409
    for wrong, code in ((-1, 422), ("3", 400)):
        async with http.put(f"{path}/d/scale", json={"spec": {"replicas": wrong}}) as response:
            assert response.status == code
    assert (await get(http, f"{path}/d"))["spec"]["replicas"] == 3


async def test_unknown_fields_become_warnings(http: aiohttp.ClientSession) -> None:
    body = {**pod("a"), "speck": {}}
    async with http.post(f"{PODS}?fieldValidation=Strict", json=body) as response:
        assert response.status == 400
        assert "unknown field speck (did you mean spec?)" in (await response.json())["message"]
    async with http.post(PODS, json=body) as response:
        assert response.headers["Warning"] == '299 - "unknown field speck (did you mean spec?)"'


async def test_a_token_is_needed_when_there_is_one() -> None:
    api = ApiServer(access=Access({"secret": ADMIN}))
    async with serve(api, addresses=[("127.0.0.1", 0)]) as server, aiohttp.ClientSession(server.urls[0]) as session:
        async with session.get(PODS) as response:
            assert response.status == 401
        async with session.get("/healthz") as response:
            assert response.status == 200
        async with session.get(PODS, headers={"Authorization": "Bearer secret"}) as response:
            assert response.status == 200


async def test_protobuf_that_is_not_known_is_refused(http: aiohttp.ClientSession) -> None:
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    kind = field(1, field(1, b"v1") + field(2, b"Namespace"))
    cases = {
        201: kind + field(2, field(1, field(1, b"shop"))),
        415: kind + field(2, field(9, b"x")),
        400: kind[:-3],
    }
    for code, body in cases.items():
        headers = {"Content-Type": "application/vnd.kubernetes.protobuf"}
        async with http.post("/api/v1/namespaces", data=MAGIC + body, headers=headers) as response:
            assert response.status == code, await response.text()
