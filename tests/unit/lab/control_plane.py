"""A control plane for tests: the API endpoint, its controllers and a kubelet that marks pods Running and Ready."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.registry import DeleteOptions, Options, Registry, Unknown
from nodenet.lab.apiserver.resources import Resource
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.controllers.kubernetes_service import Endpoint
from nodenet.lab.controllers.run import run

Obj = dict[str, Any]
# Seconds. Much longer than any step here takes, so that a failure ends the test with an error.
PATIENCE = 15.0


def node(name: str, **spec: Any) -> Obj:
    conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": spec,
        "status": {"conditions": conditions},
    }


def workload(kind: str, name: str, replicas: int | None = 2, **spec: Any) -> Obj:
    """An apps/v1 workload with one container that has the port http/8080."""
    container = {"name": "main", "image": "example/server:1", "ports": [{"name": "http", "containerPort": 8080}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    body: Obj = {"selector": {"matchLabels": {"app": name}}, "template": template, **spec}
    if replicas is not None:
        body["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": body}


def service(name: str, *ports: Obj, **spec: Any) -> Obj:
    body = {"selector": {"app": name}, "ports": list(ports) or [{"port": 80, "targetPort": 8080}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


class LocalObjects:
    """Objects in the API endpoint's own process."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        stored = self._registry.storage.get(resource.key, (namespace if resource.namespaced else "", name))
        return None if stored is None else stored.decode()

    def create(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj:
        return self._registry.create(obj, options=Options(dry_run, Unknown.STRICT)).decode()

    def update(self, resource: Resource, obj: Obj, *, dry_run: bool = False) -> Obj:
        return self._registry.update(obj, options=Options(dry_run, Unknown.STRICT)).decode()

    def delete(self, resource: Resource, namespace: str, name: str) -> bool:
        try:
            self._registry.delete(resource, namespace, name, DeleteOptions())
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        return True


class FakeKubelet:
    """Plays every node: a bound pod gets an address and is Ready, one that is being deleted is removed.

    `hold` decides which pods stay as they are.
    """

    def __init__(self, client: LocalClient, hold: Callable[[Obj], bool] = lambda pod: False) -> None:
        self._client = client
        self.hold = hold
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        async for event in self._client.watch("Pod"):
            pod = event.object
            if event.type == "DELETED" or self.hold(pod):
                continue
            try:
                await self.play(pod)
            except ApiError as error:
                if error.code not in (404, 409):
                    raise

    async def play(self, pod: Obj) -> None:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            await self._client.delete("Pod", metadata["name"], metadata["namespace"], grace=0, uid=metadata["uid"])
        elif pod["spec"].get("nodeName") and not (pod.get("status") or {}).get("podIPs"):
            number = next(self._numbers)
            ips = [{"ip": f"10.0.{number // 250}.{number % 250 + 1}"}, {"ip": f"fd00::{number:x}"}]
            await self.set_ready(pod, True, podIPs=ips, podIP=ips[0]["ip"], phase="Running")

    async def set_ready(self, pod: Obj, ready: bool, **status: Any) -> None:
        conditions = [{"type": "Ready", "status": str(ready)}]
        body = {"status": {"conditions": conditions, **status}}
        await self._client.patch("Pod", pod["metadata"]["name"], body, pod["metadata"]["namespace"], "status")


class ControlPlane:
    """What a test holds. `until` waits on watch events, never on time."""

    def __init__(self, api: ApiServer, kubelet: FakeKubelet) -> None:
        self.api = api
        self.client = api.client
        self.kubelet = kubelet

    async def until(self, kind: str, check: Callable[[list[Obj]], bool], namespace: str = "") -> list[Obj]:
        """The objects of a kind as soon as `check` holds for them."""
        async with asyncio.timeout(PATIENCE):
            listing = await self.client.list(kind, namespace)
            if check(listing.items):
                return listing.items
            async for _ in self.client.watch(kind, namespace, version=listing.version):
                items = (await self.client.list(kind, namespace)).items
                if check(items):
                    return items
        raise AssertionError("unreachable")

    async def ready(self, count: int, app: str = "") -> list[Obj]:
        """Exactly `count` pods (of an app), all Ready."""

        def check(pods: list[Obj]) -> bool:
            own = [p for p in pods if not app or p["metadata"].get("labels", {}).get("app") == app]
            return len(own) == count and all(is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in own)

        pods = await self.until("Pod", check)
        return [p for p in pods if not app or p["metadata"].get("labels", {}).get("app") == app]


def is_ready(pod: Obj) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@asynccontextmanager
async def control_plane(
    nodes: int = 2,
    cidrs: tuple[str, ...] = ("10.96.0.0/16",),
    hold: Callable[[Obj], bool] = lambda pod: False,
    endpoint: Endpoint | None = None,
) -> AsyncIterator[ControlPlane]:
    api = ApiServer(cidrs)
    kubelet = FakeKubelet(api.client, hold)
    tasks = [asyncio.create_task(run(api, endpoint)), asyncio.create_task(kubelet.run())]
    try:
        for number in range(nodes):
            await api.client.create(node(f"node{number + 1}"))
        yield ControlPlane(api, kubelet)
        for task in tasks:
            assert not task.done() or task.result() is None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
