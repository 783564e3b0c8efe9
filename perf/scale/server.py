"""An API server for one measurement: it serves prepared objects to lists and watches, counts what it sends, and sends
changes on request. `python -m perf.scale.server WORLD_AS_JSON [--pages]` prints its port.

It has no etcd, no TLS and no rights: it measures the client, not itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from aiohttp import web

from perf.scale.objects import CHANGES, World, make

_END = {"k8s.io/initial-events-end": "true"}
_BOOKMARK_SECONDS = 60.0


class Server:
    """`streams`: whether it has streaming lists. `sent`: bytes of bodies by plural."""

    def __init__(self, world: World, streams: bool) -> None:
        self._world = world
        self._streams = streams
        self._version = 1
        self._objects: dict[str, list[bytes]] = {}
        self._watches: dict[str, list[web.StreamResponse]] = {}
        self.sent: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        for kind, count in world.counts().items():
            self._objects[kind] = []
            for index in range(count):
                self._version += 1
                self._objects[kind].append(_compact(make(world, kind, index, self._version)))

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/perf/counters", self._counters)
        app.router.add_post("/perf/change", self._change)
        app.router.add_get("/apis", self._groups)
        app.router.add_get("/{path:.*}", self._collection)
        return app

    async def _counters(self, _request: web.Request) -> web.Response:
        return web.json_response({"sent": self.sent, "requests": self.requests})

    async def _groups(self, _request: web.Request) -> web.Response:
        """No group of an optional kind, but that of the definitions of kinds, as an API server has it."""
        versions = [{"groupVersion": "apiextensions.k8s.io/v1", "version": "v1"}]
        groups = [{"name": "apiextensions.k8s.io", "versions": versions}]
        return web.json_response({"kind": "APIGroupList", "groups": groups})

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.rpartition("/")[2]
        if kind not in self._objects:
            return web.json_response({"kind": "Status", "code": 404, "message": request.path}, status=404)
        if "watch" in request.query:
            return await self._watch(request, kind)
        self.requests[f"list {kind}"] += 1
        found = self._objects[kind]
        limit = int(request.query.get("limit", 0))
        # As from the memory of a real server: no limit with resourceVersion 0.
        if limit and "resourceVersion" not in request.query:
            found = found[:limit]
        metadata = {"resourceVersion": str(self._version), "remainingItemCount": len(self._objects[kind]) - len(found)}
        body = b'{"kind":"List","metadata":%b,"items":[%b]}' % (_compact(metadata), b",".join(found))
        self.sent[kind] += len(body)
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        stream = "sendInitialEvents" in request.query
        if stream and not self._streams:
            self.requests[f"refused stream {kind}"] += 1
            return web.json_response({"kind": "Status", "code": 422, "message": "no streaming lists"}, status=422)
        self.requests[f"{'stream' if stream else 'watch'} {kind}"] += 1
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for obj in self._objects[kind] if stream else ():
            await self._send(response, kind, _event("ADDED", obj))
        if stream:
            await self._send(response, kind, self._bookmark(_END))
        self._watches.setdefault(kind, []).append(response)
        try:
            while True:
                await asyncio.sleep(_BOOKMARK_SECONDS)
                await self._send(response, kind, self._bookmark({}))
        finally:
            self._watches[kind].remove(response)

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        metadata = {"resourceVersion": str(self._version), "annotations": annotations}
        return _event("BOOKMARK", _compact({"metadata": metadata}))

    async def _send(self, response: web.StreamResponse, kind: str, line: bytes) -> None:
        self.sent[kind] += len(line)
        await response.write(line)

    async def _change(self, request: web.Request) -> web.Response:
        """Send `count` events of a change, one after the other, each for another object."""
        kind, change = CHANGES[request.query["what"]]
        round_ = int(request.query["round"])
        for index in range(int(request.query["count"])):
            self._version += 1
            place = index % len(self._objects[kind])
            obj = json.loads(self._objects[kind][place])
            obj["metadata"]["resourceVersion"] = str(self._version)
            change(obj, round_)
            self._objects[kind][place] = _compact(obj)
            for response in self._watches.get(kind, ()):
                await self._send(response, kind, _event("MODIFIED", self._objects[kind][place]))
        return web.json_response({})


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(kind: str, obj: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), obj)


async def main() -> None:
    server = Server(World(**json.loads(sys.argv[1])), "--pages" not in sys.argv)
    runner = web.AppRunner(server.application(), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
