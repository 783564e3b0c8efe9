"""A declaration of an optional kind through the real client, the store and the lab's API."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from nodenet import kinds
from nodenet.agent.api_health import as_rows
from nodenet.kinds import API_KINDS, ENDPOINT, ApiResource
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.lab.apiserver.server import ApiServer, serve
from nodenet.model import ObjectRef
from nodenet.store import Store

GROUP = "policy.example.com"
# A NetworkPolicy of a custom group stands for an optional kind: nothing else in the agent knows of the change.
POLICY = replace(
    kinds.NETWORK_POLICY,
    resource=ApiResource(GROUP, "v1alpha1", "TestPolicy", "testpolicies"),
    optional=True,
)
SERVED = (*(kind for kind in API_KINDS if kind is not kinds.NETWORK_POLICY), POLICY)
VERSION = {"name": "v1alpha1", "served": True, "storage": True}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"testpolicies.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "testpolicies", "kind": "TestPolicy"},
        "versions": [VERSION],
    },
}


class Followed:
    """A store that follows the API, without pauses."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client
        self.store = Store((*SERVED, ENDPOINT))
        self.store.replace(ENDPOINT, ())

    async def follow(self, kind: kinds.ApiKind) -> None:
        async for found in self.client.watch(kind):
            self.store.feed(found)

    def state(self) -> str:
        rows: dict[str, Any] = as_rows(self.client.stats, 0.0)
        state: str = rows["TestPolicy"]["state"]
        return state

    async def until(self, state: str, policies: int) -> None:
        async with asyncio.timeout(10):
            while (self.state(), len(self.store.snapshot().policies)) != (state, policies):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_absent_then_there_then_gone() -> None:
    async def soon(_seconds: float) -> None:
        await asyncio.sleep(0.01)

    api = ApiServer()
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeClient(ClusterAccess(server.urls[0]), SERVED, sleep=soon) as client,
    ):
        followed = Followed(client)
        tasks = [asyncio.create_task(followed.follow(kind)) for kind in SERVED]
        try:
            await followed.until("not installed", 0)
            async with asyncio.timeout(5):
                while not followed.store.synced:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await api.client.create(DEFINITION)
            policy = {"apiVersion": f"{GROUP}/v1alpha1", "kind": "TestPolicy", "spec": {"podSelector": {}}}
            await api.client.create({**policy, "metadata": {"name": "deny", "namespace": "default"}})
            await followed.until("watched", 1)
            assert ObjectRef("default", "deny") in followed.store.snapshot().policies
            # Each object is deleted before the kind is no longer served, so nothing is waited for.
            await api.client.delete("CustomResourceDefinition", f"testpolicies.{GROUP}")
            await followed.until("not installed", 0)
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
