"""The API as the lab's kubelets use it, within the API's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from nodenet.lab import pods
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.pod_events import PodEvents, now

Object = dict[str, Any]
# The object was deleted, or replaced by another one of the same name.
_GONE = (404, 409)


class ClientPodApi:
    """Implements pod_worker.PodApi. Writing to a pod that was deleted or replaced in the meantime is not an error."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._events = PodEvents(client, now)

    async def pods(self, node: str) -> AsyncIterator[tuple[bool, Object]]:
        """Yields (True, pod) for each new or changed pod, and (False, last state) for each deleted one. Endless."""
        async for change in self._client.follow("Pod", f"spec.nodeName={node}"):
            if change.new is not None:
                yield True, change.new
            elif change.old is not None:
                yield False, change.old

    async def set_status(self, pod: Object, status: Mapping[str, Any]) -> None:
        metadata = pod["metadata"]
        body = {"metadata": {"uid": metadata["uid"]}, "status": dict(status)}
        try:
            # Read the annotation from the API, not from the copy of the watch, which may be older. No other task runs
            # between this read and the write.
            if pods.manual_status(await self._client.get("Pod", metadata["name"], metadata["namespace"])):
                return
            await self._client.patch("Pod", metadata["name"], body, metadata["namespace"], "status")
        except ApiError as error:
            if error.code not in _GONE:
                raise

    async def warn(self, pod: Object, reason: str, message: str, node: str) -> None:
        await self._events.warn(pod, reason, message, "kubelet", node)

    async def finish_deletion(self, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self._client.delete("Pod", metadata["name"], metadata["namespace"], grace=0, uid=metadata["uid"])
        except ApiError as error:
            if error.code not in _GONE:
                raise
