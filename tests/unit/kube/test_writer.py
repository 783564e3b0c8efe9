"""Writes against a server that does what servers do, and against the lab's API."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from nodenet import kinds
from nodenet.kinds import ApiResource
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.refusals import REFUSED_SECONDS
from nodenet.kube.retry import ATTEMPTS, DEADLINE_SECONDS, Outcome
from nodenet.kube.writer import CONNECTIONS, KubeWriter, PatchType, Target
from nodenet.lab.apiserver.access import Access, reader
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.model import ObjectRef
from nodenet.store import Listing

NODE = Target(kinds.NODE.resource, ObjectRef("", "n1"), "status")
STATUS = {"status": {"phase": "Running"}}
HANG = object()


@dataclass
class Answers:
    """One for each request, the last one again and again: a code, (code, headers), (code, headers, body), or HANG."""

    answers: list[Any]
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.requests.append((request.method, request.path_qs, json.loads(text) if text else None))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is HANG:
            await self.closing.wait()
            answer = 200
        code, headers, body = (*answer, {})[:3] if isinstance(answer, tuple) else (answer, {}, {})
        return web.json_response(body, status=code, headers=headers)


class Time:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@asynccontextmanager
async def writing(answers: Answers, **options: Any) -> AsyncIterator[tuple[KubeWriter, Time]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answers.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    time = Time()
    access = ClusterAccess(f"http://{host}:{port}")
    try:
        async with KubeWriter(
            access, sleep=time.sleep, spread=lambda: 1.0, clock=lambda: time.now, **options
        ) as writer:
            yield writer, time
    finally:
        answers.closing.set()
        await runner.cleanup()


async def test_a_patch_of_status() -> None:
    script = Answers([200])
    async with writing(script) as (writer, _):
        assert await writer.patch(NODE, STATUS) is Outcome.DONE
    assert script.requests == [("PATCH", "/api/v1/nodes/n1/status?fieldManager=nodenet", STATUS)]


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429, 401, 409])
async def test_passing_trouble_is_tried_again(code: int) -> None:
    script = Answers([code, code, 200])
    async with writing(script) as (writer, time):
        assert await writer.patch(NODE, STATUS) is Outcome.DONE
        assert time.pauses == [0.2, 0.4]
        assert writer.outcomes[Outcome.DONE] == 1


async def test_trouble_that_lasts_is_given_up() -> None:
    script = Answers([503])
    async with writing(script) as (writer, time):
        assert await writer.patch(NODE, STATUS) is Outcome.GAVE_UP
        assert len(script.requests) == ATTEMPTS
        assert sum(time.pauses) < DEADLINE_SECONDS
        assert writer.problems() == []


async def test_retry_after_is_kept() -> None:
    script = Answers([(429, {"Retry-After": "7"}), (503, {"Retry-After": "20"}), 200])
    async with writing(script) as (writer, time):
        assert await writer.patch(NODE, STATUS) is Outcome.DONE
        assert time.pauses == [7.0, 20.0]


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    script = Answers([HANG])
    async with writing(script, write_seconds=0.05) as (writer, _):
        assert await writer.patch(NODE, STATUS) is Outcome.GAVE_UP
        assert len(script.requests) == ATTEMPTS


@pytest.mark.parametrize(("code", "outcome"), [(404, Outcome.GONE), (422, Outcome.REJECTED), (400, Outcome.REJECTED)])
async def test_what_no_repetition_helps_is_sent_once(code: int, outcome: Outcome) -> None:
    script = Answers([code])
    async with writing(script) as (writer, _):
        assert await writer.patch(NODE, STATUS) is outcome
        assert len(script.requests) == 1


async def test_a_refusal_is_reported_once_and_not_asked_for_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    body = {"kind": "Status", "reason": "Forbidden", "message": 'nodes "n1" is forbidden: User "x" cannot patch'}
    script = Answers([(403, {}, body)])
    with caplog.at_level(logging.WARNING, "nodenet.kube"):
        async with writing(script) as (writer, time):
            for _ in range(5):
                assert await writer.patch(NODE, STATUS) is Outcome.FORBIDDEN
            assert len(script.requests) == 1
            assert len(caplog.records) == 1
            (sentence,) = writer.problems()
            assert sentence == f"no permission to patch nodes/status: 403 {body['message']}"
            # Other verbs and resources are not touched by it.
            other = Target(kinds.POD.resource, ObjectRef("a", "p"), "status")
            await writer.patch(other, STATUS)
            await writer.patch(Target(kinds.POD.resource, ObjectRef("b", "p"), "status"), STATUS)
            assert writer.problems()[1].endswith("(and in 1 other namespaces)")
            # Roles change: it is tried again later, and then nothing is reported any more.
            time.now += REFUSED_SECONDS
            script.answers = [200]
            assert await writer.patch(NODE, STATUS) is Outcome.DONE
            assert not [text for text in writer.problems() if "nodes/status" in text]


async def test_a_lost_answer_to_a_create_is_no_error() -> None:
    exists = (409, {}, {"kind": "Status", "reason": "AlreadyExists"})
    script = Answers([504, exists])
    events = ApiResource("", "v1", "Event", "events")
    async with writing(script) as (writer, _):
        assert await writer.create(events, "shop", {"metadata": {"name": "a.1"}}) is Outcome.DONE
    assert [path for _, path, _ in script.requests] == ["/api/v1/namespaces/shop/events?fieldManager=nodenet"] * 2


async def test_writes_have_a_few_connections_and_watches_their_own() -> None:
    """All writes hang; a list of the same server is answered."""
    empty = (200, {}, {"metadata": {"resourceVersion": "1"}, "items": []})
    # The number of nodes, a streaming list, and a list in pages.
    script = Answers([HANG] * CONNECTIONS + [empty, 422, empty])
    async with writing(script) as (writer, _):
        writes = [asyncio.ensure_future(writer.patch(NODE, STATUS)) for _ in range(20)]
        async with asyncio.timeout(5):
            while len(script.requests) < CONNECTIONS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            async with KubeClient(writer._session.access) as client:
                events = client.watch(kinds.NODE)
                assert await anext(events) == Listing(kinds.NODE, ())
                await events.aclose()  # type: ignore[attr-defined]
        assert [method for method, *_ in script.requests] == ["PATCH"] * CONNECTIONS + ["GET"] * 3
        for write in writes:
            write.cancel()
        await asyncio.gather(*writes, return_exceptions=True)


@asynccontextmanager
async def lab(access: Access | None = None, token: str = "") -> AsyncIterator[tuple[ApiServer, KubeWriter]]:
    async def soon(_seconds: float) -> None:
        await asyncio.sleep(0)

    api = ApiServer(access=access)
    await api.client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {}})
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeWriter(ClusterAccess(server.urls[0], token=token), sleep=soon) as writer,
    ):
        yield api, writer


def condition(state: str) -> dict[str, str]:
    return {"type": "NetworkUnavailable", "status": state, "reason": "NodenetReady", "message": "it runs"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PatchType.MERGE, {"status": {"conditions": [condition("False")]}}),
        (PatchType.STRATEGIC, {"status": {"conditions": [condition("False")]}}),
        (PatchType.JSON, [{"op": "add", "path": "/status", "value": {"conditions": [condition("False")]}}]),
        (
            PatchType.APPLY,
            {"apiVersion": "v1", "kind": "Node", "status": {"conditions": [condition("False")]}},
        ),
    ],
)
async def test_every_kind_of_patch_reaches_the_status(kind: PatchType, body: Any) -> None:
    async with lab() as (api, writer):
        assert await writer.patch(NODE, body, kind) is Outcome.DONE
        node = await api.client.get("Node", "n1")
        assert node["status"]["conditions"] == [condition("False")]
        assert node["spec"] == {}


async def test_of_two_writers_none_is_overwritten() -> None:
    """Each adds its own condition to the list that it read; the other one writes in between."""
    async with lab() as (api, writer):
        looks = 0

        def add(obj: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks <= 2:
                other = {"type": f"Other{looks}", "status": "True"}
                live = api.registry.get(_nodes(api), "", "n1").decode()
                live.setdefault("status", {}).setdefault("conditions", []).append(other)
                api.registry.update(live, subresource="status")
            return {"status": {"conditions": [*(obj.get("status") or {}).get("conditions", ()), condition("False")]}}

        assert await writer.change(NODE, add) is Outcome.DONE
        assert looks == 3
        found = (await api.client.get("Node", "n1"))["status"]["conditions"]
        assert [entry["type"] for entry in found] == ["Other1", "Other2", "NetworkUnavailable"]


def _nodes(api: ApiServer) -> Any:
    return next(resource for resource in api.registry.catalog if resource.kind == "Node")


async def test_nothing_is_sent_for_an_object_that_is_right_and_none_is_made() -> None:
    async with lab() as (api, writer):
        before = (await api.client.get("Node", "n1"))["metadata"]["resourceVersion"]
        assert await writer.change(NODE, lambda _: None) is Outcome.DONE
        assert (await api.client.get("Node", "n1"))["metadata"]["resourceVersion"] == before
        away = Target(kinds.NODE.resource, ObjectRef("", "n2"), "status")
        assert await writer.change(away, lambda _: STATUS) is Outcome.GONE
        assert await writer.patch(away, STATUS) is Outcome.GONE


async def test_an_agent_of_the_lab_may_not_write() -> None:
    async with lab(Access({"t": reader("agent", ["Node"])}), "t") as (_, writer):
        assert await writer.patch(NODE, STATUS) is Outcome.FORBIDDEN
        assert 'User "agent" cannot PATCH' in writer.problems()[0]
