"""An API server for the commands of a whole cluster: any kind of object, server-side apply, logs, and exec that a test
answers. It keeps no rules of a kind: those are tried against a real API server."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any

from aiohttp import web

from nodenet.cluster.client import Cluster
from nodenet.kube.config import ClusterAccess

Obj = dict[str, Any]
Key = tuple[str, str, str, str]  # group/version, plural, namespace, name

# Kinds by group and version; the value says whether objects have a namespace.
SERVED: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "Namespace": ("namespaces", False),
        "Node": ("nodes", False),
        "Pod": ("pods", True),
        "Service": ("services", True),
        "ServiceAccount": ("serviceaccounts", True),
        "ConfigMap": ("configmaps", True),
        "Secret": ("secrets", True),
        "Event": ("events", True),
    },
    "apps/v1": {"DaemonSet": ("daemonsets", True)},
    "discovery.k8s.io/v1": {"EndpointSlice": ("endpointslices", True)},
    "networking.k8s.io/v1": {"NetworkPolicy": ("networkpolicies", True)},
    "rbac.authorization.k8s.io/v1": {
        "ClusterRole": ("clusterroles", False),
        "ClusterRoleBinding": ("clusterrolebindings", False),
    },
}
# In place of an exit status: the command does not start, or the connection ends without a status.
NOT_STARTED, NO_STATUS = -1, -2
# Called with the pod's name and the command. Returns exit status, stdout and stderr.
Execute = Callable[[str, list[str]], Awaitable[tuple[int, bytes, bytes]]]


async def _nothing(_pod: str, command: list[str]) -> tuple[int, bytes, bytes]:
    return 126, b"", f"unexpected: {command}".encode()


@dataclass
class Api:
    """`refuse`: a status and message by the name or plural of objects that may not be written; `refuse_lists`: by the
    plural of objects that may not be listed. `logs`: by pod."""

    objects: dict[Key, Obj] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    refuse_lists: dict[str, tuple[int, str]] = field(default_factory=dict)
    execute: Execute = _nothing
    # Method and object of each write that was asked for, without dry runs.
    writes: list[tuple[str, str]] = field(default_factory=list)
    # Called with each object that is created: what controllers and kubelets would do.
    react: Callable[[Obj], None] = lambda _obj: None
    # Called with the object before each patch of a status: what another writer does at that moment.
    before_patch: Callable[[Obj], None] = lambda _obj: None

    def add(self, *objects: Obj) -> None:
        for obj in objects:
            self.objects[_path_of(obj)] = copy.deepcopy(obj)

    def named(self, kind: str, name: str) -> Obj | None:
        return next((o for o in self.objects.values() if (o["kind"], o["metadata"]["name"]) == (kind, name)), None)

    def remaining(self) -> set[str]:
        return {f"{obj['kind']} {obj['metadata']['name']}" for obj in self.objects.values()}

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[Cluster]:
        async with self._serving() as url, Cluster(ClusterAccess(url)) as cluster:
            yield cluster

    @contextmanager
    def kubeconfig(self, folder: Path) -> Iterator[str]:
        """A file with which a command finds this API, which a thread serves."""
        ready, done = Queue[str](), Event()

        async def serve() -> None:
            async with self._serving() as url:
                ready.put(url)
                await asyncio.to_thread(done.wait)

        thread = Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            cluster = {"name": "k", "cluster": {"server": ready.get(timeout=10)}}
            context = {"name": "c", "context": {"cluster": "k"}}
            path = folder / "kubeconfig"
            path.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "current-context": "c"}))
            yield str(path)
        finally:
            done.set()
            thread.join()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0][:2])
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            return web.json_response({"gitVersion": "v1.36.0"})
        parts = request.path.strip("/").split("/")[1:]
        version = parts.pop(0) if request.path.startswith("/api/") else f"{parts.pop(0)}/{parts.pop(0)}"
        if version not in SERVED:
            return _status(404, "the server could not find the requested resource")
        if not parts:
            return web.json_response({"kind": "APIResourceList", "resources": _resources(version)})
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            _, namespace, *parts = parts
        plural, name, sub = (*parts, "", "")[:3]
        path = (version, plural, namespace, name)
        if sub == "exec":
            return await self._exec(request, name)
        if sub == "log":
            return web.Response(text=self.logs.get(name, ""))
        if request.method == "GET" and not name:
            return self._list(request, path)
        if request.method == "GET":
            found = self.objects.get(path)
            return web.json_response(found) if found else _status(404, f'{plural} "{name}" not found')
        if sub == "status":
            return await self._patch_status(request, path)
        return await self._write(request, path)

    def _list(self, request: web.Request, path: Key) -> web.Response:
        if path[1] in self.refuse_lists:
            return _status(*self.refuse_lists[path[1]])
        wanted = dict(pair.split("=", 1) for pair in request.query.get("labelSelector", "").split(",") if pair)
        phase = request.query.get("fieldSelector", "").partition("status.phase=")[2]
        items = [
            obj
            for (version, plural, namespace, _), obj in self.objects.items()
            if (version, plural) == path[:2] and path[2] in ("", namespace)
            if wanted.items() <= (obj["metadata"].get("labels") or {}).items()
            if not phase or obj.get("status", {}).get("phase") == phase
        ]
        return web.json_response({"metadata": {}, "items": items})

    async def _write(self, request: web.Request, path: Key) -> web.Response:
        body = await request.json()
        name = path[3] or body["metadata"]["name"]
        path = (*path[:3], name)
        dry = request.query.get("dryRun") == "All"
        if not dry:
            self.writes.append((request.method, f"{path[1]}/{name}"))
        for refused in (path[1], name):
            if refused in self.refuse:
                return _status(*self.refuse[refused])
        if request.method == "DELETE":
            return self._delete(path)
        found = _merged(self.objects.get(path, {}), body)
        found["metadata"]["generation"] = self.objects.get(path, {}).get("metadata", {}).get("generation", 0) + 1
        if not dry:
            self.objects[path] = found
            self.react(found)
        return web.json_response(found)

    async def _patch_status(self, request: web.Request, path: Key) -> web.Response:
        """A strategic merge patch of conditions, whose key is their type."""
        assert request.headers["Content-Type"] == "application/strategic-merge-patch+json"
        if path[3] in self.refuse:
            return _status(*self.refuse[path[3]])
        body, found = await request.json(), self.objects[path]
        self.before_patch(found)
        wanted, version = body["metadata"]["resourceVersion"], found["metadata"]["resourceVersion"]
        if wanted != version:
            return _status(409, "the object has been modified; please apply your changes to the latest version")
        gone = {one["type"] for one in body["status"]["conditions"] if one.get("$patch") == "delete"}
        assert len(gone) == len(body["status"]["conditions"])
        found["status"]["conditions"] = [one for one in found["status"]["conditions"] if one["type"] not in gone]
        self.writes.append((request.method, f"{path[1]}/{path[3]}/status"))
        return web.json_response(found)

    def _delete(self, path: Key) -> web.Response:
        if self.objects.pop(path, None) is None:
            return _status(404, f'{path[1]} "{path[3]}" not found')
        if path[1] == "namespaces":
            self.objects = {key: obj for key, obj in self.objects.items() if key[2] != path[3]}
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _exec(self, request: web.Request, pod: str) -> web.StreamResponse:
        if "application/json" in request.headers["Accept"]:
            return _status(406, "only the following media types are accepted: */*")
        if pod in self.refuse:
            return _status(*self.refuse[pod])
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        await socket.prepare(request)
        code, stdout, stderr = await self.execute(pod, request.query.getall("command"))
        for number, data in ((1, stdout), (2, stderr)):
            for start in range(0, len(data), 1000):
                await socket.send_bytes(bytes([number]) + data[start : start + 1000])
        status: Obj = {"status": "Success"}
        if code == NOT_STARTED:
            status = {"status": "Failure", "message": "executable file not found"}
        elif code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        if code != NO_STATUS:
            await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        await socket.close()
        return socket


def _resources(version: str) -> list[Obj]:
    return [{"name": plural, "kind": kind, "namespaced": spaced} for kind, (plural, spaced) in SERVED[version].items()]


def _path_of(obj: Obj) -> Key:
    plural, _ = SERVED[obj["apiVersion"]][obj["kind"]]
    return obj["apiVersion"], plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _merged(before: Any, after: Any) -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: _merged(before.get(key), after.get(key, before.get(key))) for key in {**before, **after}}
    return copy.deepcopy(after)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "code": code, "message": message}, status=code)
