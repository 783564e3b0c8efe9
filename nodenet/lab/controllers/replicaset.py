"""ReplicaSet -> Pods: as many as spec.replicas. Deletes the least useful ones first.

Rules: kubernetes pkg/controller/replicaset. A pod is available as soon as it is ready (minReadySeconds is ignored).
"""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.selectors import from_object, matches
from nodenet.lab.apiserver.tables import is_ready
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import (
    Key,
    Obj,
    active,
    claim,
    controller_of,
    deleting,
    get,
    key_of,
    nonzero,
    owner_keys,
    pod_from,
    ready,
    remove,
    set_status,
)


class ReplicaSets(Controller):
    kinds = ("ReplicaSet", "Pod")

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        obj = new or old
        if obj is None:
            return ()
        if kind == "ReplicaSet":
            return (key_of(obj),)
        if new is not None and controller_of(new) is None:
            return [*owner_keys("ReplicaSet", old), *self._could_adopt(new)]
        return owner_keys("ReplicaSet", old, new)

    def _could_adopt(self, pod: Obj) -> list[Key]:
        labels = pod["metadata"].get("labels") or {}
        sets = [stored.decode() for stored in self._client.peek("ReplicaSet", pod["metadata"]["namespace"])]
        return [key_of(obj) for obj in sets if matches(from_object(obj["spec"]["selector"]) or (), labels)]

    async def sync(self, key: Key) -> None:
        owner = await get(self._client, "ReplicaSet", key)
        if owner is None:
            return
        pods = active(await claim(self._client, owner, "Pod"))
        wanted = owner["spec"]["replicas"]
        if not deleting(owner):
            for _ in range(wanted - len(pods)):
                pods.append(await self._client.create(pod_from(owner, owner["spec"]["template"], {})))
            for pod in sorted(pods, key=usefulness)[: max(len(pods) - wanted, 0)]:
                await remove(self._client, pod)
                pods.remove(pod)
        labels = owner["spec"]["template"]["metadata"].get("labels") or {}
        full = sum(1 for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items())
        counts = nonzero(fullyLabeledReplicas=full, readyReplicas=ready(pods), availableReplicas=ready(pods))
        status = {"replicas": len(pods), **counts, "observedGeneration": owner["metadata"]["generation"]}
        await set_status(self._client, owner, status)


def usefulness(pod: Obj) -> tuple[object, ...]:
    """A sort key that puts the pods to delete first: on no node, not running, not ready, newest."""
    status = pod.get("status") or {}
    newest = "".join(chr(255 - ord(c)) for c in pod["metadata"].get("creationTimestamp", ""))
    on_node = bool(pod["spec"].get("nodeName"))
    return on_node, status.get("phase") == "Running", is_ready(pod), newest, pod["metadata"]["name"]
