"""Events about pods that do not start, as the scheduler and a kubelet write them: `kubectl describe pod` shows them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.status import ApiError

Object = Mapping[str, Any]
# The API deletes Events after an hour. Here the oldest ones go when there are more than this.
_MOST = 500


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PodEvents:
    """One Event for each pod, reason and message. If it occurs again, its count and time change. `clock` returns the
    time as the API writes it."""

    def __init__(self, client: LocalClient, clock: Callable[[], str]) -> None:
        self._client = client
        self._now = clock
        # (namespace, name) -> count, the oldest first.
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def warn(self, pod: Object, reason: str, message: str, component: str, host: str = "") -> None:
        """Record a Warning. Does nothing if the API refuses it, for example because the namespace is being deleted: an
        Event must not stop a pod."""
        metadata = pod["metadata"]
        digest = blake2b(f"{metadata['uid']}\0{reason}\0{message}".encode(), digest_size=8).hexdigest()
        key = metadata["namespace"], f"{metadata['name'][:200]}.{digest}"
        count = self._known.get(key, 0) + 1
        try:
            if count > 1:
                again = {"count": count, "lastTimestamp": self._now()}
                await self._client.patch("Event", key[1], again, key[0])
            else:
                await self._client.create(
                    self._event(key, pod, reason, message, {"component": component, "host": host})
                )
        except ApiError:
            self._known.pop(key, None)
            return
        self._known[key] = count
        while len(self._known) > _MOST:
            (namespace, name), _ = self._known.popitem(last=False)
            await self._delete(namespace, name)

    def _event(
        self, key: tuple[str, str], pod: Object, reason: str, message: str, source: Mapping[str, str]
    ) -> dict[str, Any]:
        metadata, time = pod["metadata"], self._now()
        involved = {"apiVersion": "v1", "kind": "Pod", **{k: metadata[k] for k in ("namespace", "name", "uid")}}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": key[0], "name": key[1]},
            "involvedObject": involved,
            "type": "Warning",
            "reason": reason,
            "message": message[:1024],
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {name: value for name, value in source.items() if value},
            "reportingComponent": source["component"],
            "reportingInstance": source["host"],
        }

    async def _delete(self, namespace: str, name: str) -> None:
        try:
            await self._client.delete("Event", name, namespace)
        except ApiError as error:
            # Somebody has deleted it, or its namespace.
            if error.code != 404:
                raise
