"""The kubelets' view of the API, from inside the API's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from nodenet.lab import pods
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.status import ApiError

Object = dict[str, Any]
# Gone, or replaced by another of the same name.
_GONE = (404, 409)


class ClientPodApi:
    """Implements pod_worker.PodApi. A write to a pod that has gone or has been replaced meanwhile is no error."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    async def pods(self, node: str) -> AsyncIterator[tuple[bool, Object]]:
        """For ever: a pod as it is now, or False and its last state."""
        async for change in self._client.follow("Pod", f"spec.nodeName={node}"):
            if change.new is not None:
                yield True, change.new
            elif change.old is not None:
                yield False, change.old

    async def set_status(self, pod: Object, status: Mapping[str, Any]) -> None:
        metadata = pod["metadata"]
        body = {"metadata": {"uid": metadata["uid"]}, "status": dict(status)}
        try:
            # Asked here, and not of the copy that the watch brought: nothing comes between this and the write.
            if pods.manual_status(await self._client.get("Pod", metadata["name"], metadata["namespace"])):
                return
            await self._client.patch("Pod", metadata["name"], body, metadata["namespace"], "status")
        except ApiError as error:
            if error.code not in _GONE:
                raise

    async def finish_deletion(self, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self._client.delete("Pod", metadata["name"], metadata["namespace"], grace=0, uid=metadata["uid"])
        except ApiError as error:
            if error.code not in _GONE:
                raise
