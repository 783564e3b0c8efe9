"""Deletes all objects of a Namespace in deletion, and removes the Namespace when it is empty."""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.resources import RESOURCES
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import Key, Obj, deleting, get, key_of, remove

# Owners before owned objects, so that controllers do not create the owned ones again.
_ORDER = ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet", "Service")
_CONTENT = sorted((r.kind for r in RESOURCES if r.namespaced), key=lambda kind: (kind not in _ORDER, kind))


class Namespaces(Controller):
    kinds = ("Namespace", *_CONTENT)

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._ending: set[str] = set()

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        obj = new or old or {}
        if kind == "Namespace":
            if new is not None and deleting(new):
                self._ending.add(new["metadata"]["name"])
            elif new is None:
                self._ending.discard(obj["metadata"]["name"])
            return (key_of(obj),) if new is not None and deleting(new) else ()
        namespace = obj["metadata"]["namespace"]
        return (("", namespace),) if new is None and namespace in self._ending else ()

    async def sync(self, key: Key) -> None:
        namespace = await get(self._client, "Namespace", key)
        if namespace is None or not deleting(namespace):
            return
        content = [*_CONTENT, *(r.key for r in self._client.custom() if r.namespaced)]
        for kind in content:
            for stored in self._client.peek(kind, key[1]):
                obj = stored.decode()
                if not deleting(obj):
                    await remove(self._client, obj, kind)
        if not any(self._client.peek(kind, key[1]) for kind in content):
            await self._client.update({**namespace, "spec": {"finalizers": []}}, "finalize")
