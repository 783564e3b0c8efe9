"""A small API server whose every answer a test scripts: it does what real ones do, also when they break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from nodenet import kinds
from nodenet.kinds import Kind
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.store import StoreEvent

Query = dict[str, str]
Handler = Callable[[Query], Any]

# End the answer by closing the connection in the middle of it.
CUT = object()
# Keep the answer open.
HOLD = object()


@dataclass
class Script:
    """Answers to lists and to watches, in order; the last list answer is repeated, a watch without one stays open.

    A list answer is a body or (status, body); a watch answer is a list of what it sends (dicts as lines, bytes as they
    are, HOLD, CUT), or an int: a status.
    """

    lists: list[Any] = field(default_factory=list)
    watches: list[Any] = field(default_factory=list)
    # Answers to streaming lists, as those of watches. Without one the server does not serve them (422).
    streams: list[Any] = field(default_factory=list)
    stream_queries: list[Query] = field(default_factory=list)
    # The number of nodes in the server's answer (negative: an error's status), and how often an agent asked for it.
    nodes: int = 1
    counts: int = 0
    # The plural of a kind that is answered with 403.
    refused: str = ""
    queries: list[Query] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def list_queries(self) -> list[Query]:
        return [query for query in self.queries if "watch" not in query]

    @property
    def watch_queries(self) -> list[Query]:
        return [query for query in self.queries if "watch" in query]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if query == {"limit": "1"}:
            self.counts += 1
            assert request.path.endswith("/nodes")
            if self.nodes < 0:
                return web.json_response({"code": -self.nodes}, status=-self.nodes)
            metadata = {"remainingItemCount": self.nodes - 1} if self.nodes > 1 else {}
            return web.json_response({"metadata": metadata, "items": [{"metadata": {"name": "n"}}]})
        if self.refused and request.path.endswith(f"/{self.refused}"):
            return web.json_response({"code": 403}, status=403)
        if "sendInitialEvents" in query:
            self.stream_queries.append(query)
            return await self._watch(request, self.streams.pop(0) if self.streams else 422)
        self.queries.append(query)
        self.headers.append(dict(request.headers))
        if "watch" in query:
            return await self._watch(request, self.watches.pop(0) if self.watches else [HOLD])
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return web.Response(status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())

    async def _watch(self, request: web.Request, script: Any) -> web.StreamResponse:
        if isinstance(script, int):
            return web.json_response({"kind": "Status", "code": script, "message": "no"}, status=script)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for item in script:
            if item is CUT:
                assert request.transport is not None
                request.transport.abort()
                break
            if item is HOLD:
                await self.closing.wait()
            else:
                await response.write(item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n")
        return response


def page(*items: Any, version: str = "10", more: str = "") -> Any:
    metadata = {"resourceVersion": version, **({"continue": more} if more else {})}
    return {"kind": "List", "metadata": metadata, "items": list(items)}


def namespace(name: str, version: str = "11", **labels: str) -> Any:
    return {"metadata": {"name": name, "resourceVersion": version, "labels": labels}}


def event(kind: str, obj: Any) -> Any:
    return {"type": kind, "object": obj}


def bookmark(version: str) -> Any:
    return event("BOOKMARK", {"kind": "Namespace", "metadata": {"resourceVersion": version, "creationTimestamp": None}})


GONE = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})


class Pauses:
    """Stands in for sleeping: no time passes, the pauses are noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(script: Script, port: int = 0) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", script.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        host, number = runner.addresses[0][:2]
        yield f"http://{host}:{number}"
    finally:
        script.closing.set()
        await runner.cleanup()


@asynccontextmanager
async def watching(
    script: Script, kind: Kind = kinds.NAMESPACE, **options: Any
) -> AsyncIterator[tuple[KubeClient, AsyncIterator[StoreEvent], Pauses]]:
    pauses = Pauses()
    async with (
        serving(script) as url,
        KubeClient(ClusterAccess(url, token="secret"), sleep=pauses, spread=lambda: 1.0, **options) as client,
    ):
        events = client.watch(kind)
        try:
            yield client, events, pauses
        finally:
            await events.aclose()  # type: ignore[attr-defined]


async def take(events: AsyncIterator[StoreEvent], number: int) -> list[StoreEvent]:
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(number)]
