"""One reading of a cluster: every page of every kind, and words for what could not be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from nodenet.errors import CannotRunError
from nodenet.kube import listing
from nodenet.kube.config import ClusterAccess

Obj = dict[str, Any]


class Api:
    """Answers by path. A list of answers is given one by one; a number is a status."""

    def __init__(self, **paths: Any) -> None:
        self.answers: dict[str, Any] = {"/apis": {"groups": []}} | paths
        self.asked: list[tuple[str, Obj]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, dict(request.query)))
        answer = self.answers.get(request.path, {"metadata": {}, "items": []})
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, int):
            body = {"kind": "Status", "message": "not for you"}
            return web.Response(status=answer, body=json.dumps(body).encode())
        return web.json_response(answer)

    def read(self) -> listing.Listed:
        async def run() -> listing.Listed:
            async with self._serving() as url:
                return await asyncio.to_thread(listing.read, ClusterAccess(url))

        return asyncio.run(run())

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0][:2])
        finally:
            await runner.cleanup()


def page(*names: str, more: str = "") -> Obj:
    return {"metadata": {"continue": more} if more else {}, "items": [{"metadata": {"name": name}} for name in names]}


def names(listed: listing.Listed) -> Iterator[str]:
    return (f"{obj['apiVersion']} {obj['kind']} {obj['metadata']['name']}" for obj in listed.objects)


def test_pages_and_kinds() -> None:
    api = Api(
        **{
            "/api/v1/pods": [page("a", more="next"), page("b")],
            "/apis/apps/v1/deployments": page("web"),
            "/apis/networking.k8s.io/v1/networkpolicies": page("deny"),
        }
    )
    found = api.read()
    assert found.notes == ()
    assert list(names(found)) == [
        "v1 Pod a",
        "v1 Pod b",
        "networking.k8s.io/v1 NetworkPolicy deny",
        "apps/v1 Deployment web",
    ]
    assert [query.get("continue") for path, query in api.asked if path == "/api/v1/pods"] == [None, "next"]
    assert {"/api/v1/nodes", "/api/v1/services", "/apis/batch/v1/cronjobs"} <= {path for path, _ in api.asked}


def test_a_page_that_expired_begins_the_list_again() -> None:
    api = Api(**{"/api/v1/pods": [page("a", more="x"), 410, page("a", more="y"), page("b")]})
    assert list(names(api.read())) == ["v1 Pod a", "v1 Pod b"]


def test_pages_that_repeat_are_an_error() -> None:
    for again in ([page("a", more="x")] * 3, [page("a", more=str(number)) for number in range(20)]):
        with pytest.raises(CannotRunError, match="pods: the list has no end"):
            Api(**{"/api/v1/pods": [*again]}).read()
        (note,) = Api(**{"/apis/apps/v1/deployments": [*again]}).read().notes
        assert "deployments.apps cannot be listed: the list has no end" in note


def test_an_object_on_two_pages_is_one() -> None:
    assert list(names(Api(**{"/api/v1/pods": [page("a", "b", more="x"), page("b", "c")]}).read())) == [
        "v1 Pod a",
        "v1 Pod b",
        "v1 Pod c",
    ]


def test_a_kind_that_decides_must_be_readable() -> None:
    for path, noun in (("/api/v1/pods", "pods"), ("/apis/networking.k8s.io/v1/networkpolicies", "networkpolicies")):
        with pytest.raises(CannotRunError, match=f"{noun}.*403 not for you") as caught:
            Api(**{path: 403}).read()
        assert "needs the verb list" in caught.value.hint


def test_other_kinds_are_missed_aloud() -> None:
    found = Api(**{"/api/v1/nodes": 403, "/apis/batch/v1/cronjobs": 404, "/api/v1/pods": page("a")}).read()
    assert found.notes == ("nodes cannot be listed: 403 not for you",)
    assert list(names(found)) == ["v1 Pod a"]


def test_an_api_that_does_not_answer() -> None:
    with pytest.raises(CannotRunError, match=r"http://127\.0\.0\.1:1: pods"):
        listing.read(ClusterAccess("http://127.0.0.1:1"))


def group(name: str, *versions: str) -> Obj:
    return {"name": name, "versions": [{"groupVersion": f"{name}/{version}"} for version in versions]}


def test_policies_of_other_apis_are_found_by_discovery() -> None:
    resources = [{"name": "networkpolicies", "kind": "NetworkPolicy"}, {"name": "felixes", "kind": "Felix"}]
    answers = {
        "/apis": {
            "groups": [group("crd.projectcalico.org", "v1"), group("projectcalico.org", "v3"), group("x.io", "v1")]
        },
        "/apis/crd.projectcalico.org/v1": {"kind": "APIResourceList", "resources": resources},
        "/apis/crd.projectcalico.org/v1/networkpolicies": page("one"),
    }
    api = Api(**answers)
    assert list(names(api.read())) == ["crd.projectcalico.org/v1 NetworkPolicy one"]
    # The aggregated API serves the same objects.
    assert not any("/apis/projectcalico.org" in path for path, _ in api.asked)
    refused = Api(**answers | {"/apis/crd.projectcalico.org/v1/networkpolicies": 403}).read()
    assert refused.notes == (
        "networkpolicies.crd.projectcalico.org cannot be listed: 403 not for you; verdicts may be wrong",
    )
    (blind,) = Api(**{"/apis": 403}).read().notes
    assert "policies of other APIs cannot be looked for: 403" in blind
