"""Garbage collector: deletes objects whose owners are all gone. Owners in foreground deletion wait for their objects.

Rules: Kubernetes "Garbage Collection" (background, foreground and orphan deletion by ownerReferences).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.registry import FOREGROUND, ORPHAN
from nodenet.lab.apiserver.resources import RESOURCES
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import Obj, deleting, get, remove, served

ObjectKey = tuple[str, str, str]


class Garbage(Controller):
    kinds = tuple(resource.kind for resource in RESOURCES)

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._dependents: dict[str, set[ObjectKey]] = defaultdict(set)

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[ObjectKey]:
        obj = new or old or {}
        metadata = obj["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        before, after = _owner_uids(old), _owner_uids(new)
        for uid in before - after:
            self._dependents.get(uid, set()).discard(key)
        for uid in after - before:
            self._dependents[uid].add(key)
        if new is None:
            waiting = {(o["kind"], key[1], o["name"]) for o in metadata.get("ownerReferences") or () if served(o)}
            return waiting | self._dependents.pop(metadata["uid"], set())
        held = set(metadata.get("finalizers") or ()) & {FOREGROUND, ORPHAN}
        return (key,) if after != before or (deleting(new) and held) else ()

    async def sync(self, key: ObjectKey) -> None:
        kind, namespace, name = key
        obj = await get(self._client, kind, (namespace, name))
        if obj is None:
            return
        finalizers = obj["metadata"].get("finalizers") or ()
        if deleting(obj) and ORPHAN in finalizers:
            await self._orphan(obj)
        elif deleting(obj) and FOREGROUND in finalizers:
            await self._foreground(obj)
        elif not deleting(obj) and obj["metadata"].get("ownerReferences"):
            owners = [await self._exists(owner, namespace) for owner in obj["metadata"]["ownerReferences"]]
            if not any(owners):
                await remove(self._client, obj)

    async def _exists(self, owner: Obj, namespace: str) -> bool:
        """True if the owner exists. An owner of a kind that is not served here counts as existing."""
        if not served(owner):
            return True
        found = await get(self._client, owner["kind"], (namespace, owner["name"]))
        return found is not None and found["metadata"]["uid"] == owner["uid"]

    async def _of(self, owner: Obj) -> list[Obj]:
        found = [await get(self._client, kind, (ns, name)) for kind, ns, name in self._dependents.get(_uid(owner), ())]
        return [obj for obj in found if obj is not None and _uid(owner) in _owner_uids(obj)]

    async def _foreground(self, owner: Obj) -> None:
        dependents = await self._of(owner)
        for obj in dependents:
            if not deleting(obj):
                await remove(self._client, obj)
        if not await self._of(owner):
            await self._release(owner, FOREGROUND)

    async def _orphan(self, owner: Obj) -> None:
        for obj in await self._of(owner):
            others = [o for o in obj["metadata"]["ownerReferences"] if o["uid"] != _uid(owner)]
            await self._client.update({**obj, "metadata": {**obj["metadata"], "ownerReferences": others}})
        await self._release(owner, ORPHAN)

    async def _release(self, owner: Obj, finalizer: str) -> None:
        left = [name for name in owner["metadata"]["finalizers"] if name != finalizer]
        await self._client.update({**owner, "metadata": {**owner["metadata"], "finalizers": left}})


def _uid(obj: Obj) -> str:
    return str(obj["metadata"]["uid"])


def _owner_uids(obj: Obj | None) -> set[str]:
    return {owner["uid"] for owner in (obj["metadata"].get("ownerReferences") or ())} if obj else set()
