"""The agent's own client against the endpoint: every kind decoded, nothing missed over a history that is too short."""

from __future__ import annotations

import asyncio

import pytest

from nodenet.kinds import Kind
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.reader import Options
from nodenet.lab.apiserver.server import serve
from nodenet.store import Store

from .control_plane import PATIENCE, ControlPlane, control_plane, service, workload


async def fill(plane: ControlPlane) -> None:
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
    await plane.client.create({**policy, "spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}})
    await plane.client.create(service("web", {"port": 80, "targetPort": "http"}))
    await plane.client.create(workload("Deployment", "web", 3))
    await plane.ready(3)
    await plane.until("EndpointSlice", lambda s: bool(s) and len(s[0]["endpoints"]) == 3)


@pytest.mark.parametrize("streams", [True, False])
async def test_the_agent_sees_what_is_there(streams: bool) -> None:
    async with control_plane() as plane, serve(plane.api, addresses=[("127.0.0.1", 0)]) as server:
        await plane.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "early"}})
        store, changed = Store(), asyncio.Event()
        async with KubeClient(ClusterAccess(server.urls[0]), options=Options(page_size=2, streams=streams)) as client:

            async def follow(kind: Kind) -> None:
                async for event in client.watch(kind):
                    store.feed(event)
                    changed.set()

            tasks = [asyncio.create_task(follow(kind)) for kind in client.stats]
            try:
                await fill(plane)
                async with asyncio.timeout(PATIENCE):
                    while not complete(store):
                        await changed.wait()
                        changed.clear()
                assert all(stats.undecodable == stats.errors == 0 for stats in client.stats.values())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def complete(store: Store) -> bool:
    snapshot = store.snapshot()
    endpoints = [endpoint for found in snapshot.slices.values() for endpoint in found.endpoints]
    ready = len(endpoints) == 3 and all(endpoint.ready for endpoint in endpoints)
    ips = all(pod.ips for pod in snapshot.pods.values())
    counts = (len(snapshot.pods), len(snapshot.services), len(snapshot.policies), len(snapshot.nodes))
    return ready and ips and counts == (3, 1, 1, 2) and len(snapshot.namespaces) == 5
