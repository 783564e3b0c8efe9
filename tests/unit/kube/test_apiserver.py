"""The client against the lab's API endpoint: a Store fed by it is equal to what the endpoint holds."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nodenet import kinds
from nodenet.kinds import API_KINDS, Kind
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.reader import Options
from nodenet.lab.apiserver.access import ADMIN, Access
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.model import ObjectRef
from nodenet.store import Snapshot, Store

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny", "namespace": "default"},
    "spec": {"podSelector": {}},
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [{"name": "", "port": 8080}],
    "endpoints": [{"addresses": ["10.0.0.5"], "conditions": {"ready": True}}],
}


def a_pod(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 80}]}]},
    }


class Fed:
    """A Store with every kind's watch."""

    def __init__(self, client: KubeClient) -> None:
        self.store = Store()
        self.store.replace(kinds.ENDPOINT, ())
        self._client = client
        self._changed = asyncio.Event()

    async def watch(self, kind: Kind) -> None:
        async for event in self._client.watch(kind):
            self.store.feed(event)
            self._changed.set()
            self._changed = asyncio.Event()

    async def until(self, condition: object) -> Snapshot:
        async with asyncio.timeout(5):
            while not (self.store.synced and condition(self.store.snapshot())):  # type: ignore[operator]
                await self._changed.wait()
        return self.store.snapshot()


@pytest.mark.parametrize("streams", [True, False])
async def test_a_store_follows_the_endpoint(streams: bool) -> None:
    api = ApiServer(access=Access({"secret": ADMIN}))
    options = Options(page_size=1, streams=streams)
    await api.client.create(a_pod("first"))
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeClient(ClusterAccess(server.urls[0], token="secret"), options=options) as client,
    ):
        fed = Fed(client)
        tasks = [asyncio.create_task(fed.watch(kind)) for kind in API_KINDS]
        try:
            await fed.until(lambda s: len(s.pods) == 1)
            await api.client.create(a_pod("second"))
            for obj in (SERVICE, SLICE, POLICY):
                await api.client.create(obj)
            found = await fed.until(lambda s: len(s.pods) == 2 and s.services and s.slices and s.policies)
            (service,) = found.services.values()
            assert len(service.cluster_ips) == 1
            assert found.slices[ObjectRef("default", "web-1")].service == service.ref
            assert {p.port for p in found.pods[ObjectRef("default", "first")].named_ports} == {80}
            await api.client.delete("Pod", "first", "default", grace=0)
            await api.client.delete("Service", "web", "default")
            await fed.until(lambda s: len(s.pods) == 1 and not s.services)
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
