"""Deployment -> ReplicaSets, one per template. Updates are rolling, within maxSurge and maxUnavailable, or Recreate.

Rules: kubernetes pkg/controller/deployment. Not supported: progressDeadlineSeconds, minReadySeconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import (
    HASH_LABEL,
    Key,
    Obj,
    claim,
    condition,
    deleting,
    get,
    key_of,
    nonzero,
    owner_keys,
    owner_reference,
    remove,
    set_status,
    template_hash,
)

REVISION = "deployment.kubernetes.io/revision"


class Deployments(Controller):
    kinds = ("Deployment", "ReplicaSet", "Pod")

    def __init__(self, client: LocalClient, now: Callable[[], str]) -> None:
        self._client = client
        self._now = now

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        if kind == "Deployment":
            return (key_of(new or old or {}),)
        if kind == "ReplicaSet":
            return owner_keys("Deployment", old, new)
        # A Recreate waits for the end of the old pods. The name of a pod's ReplicaSet leads to the Deployment.
        if new is None and old is not None:
            sets = [
                self._client.peek("ReplicaSet", ns, fields=f"metadata.name={n}")
                for ns, n in owner_keys("ReplicaSet", old)
            ]
            return [key for found in sets for stored in found for key in owner_keys("Deployment", stored.decode())]
        return ()

    async def sync(self, key: Key) -> None:
        deployment = await get(self._client, "Deployment", key)
        if deployment is None:
            return
        sets = await claim(self._client, deployment, "ReplicaSet")
        if not deleting(deployment):
            sets = await self._roll(deployment, sets)
        await self._report(deployment, sets)

    async def _roll(self, deployment: Obj, sets: list[Obj]) -> list[Obj]:
        spec = deployment["spec"]
        number = template_hash(spec["template"])
        new = next((s for s in sets if s["metadata"]["labels"].get(HASH_LABEL) == number), None)
        old = [s for s in sets if s is not new]
        if spec.get("paused"):
            if new is not None and not any(s["spec"]["replicas"] for s in old):
                new = await self._scale(new, spec["replicas"])
        elif spec["strategy"]["type"] == "Recreate":
            old = [await self._scale(s, 0) for s in old]
            if not self._has_pods(old):
                new = await self._newest(deployment, new, number, sets, spec["replicas"])
        else:
            surge, unavailable = _limits(spec)
            room = spec["replicas"] + surge - sum(s["spec"]["replicas"] for s in sets)
            have = new["spec"]["replicas"] if new else 0
            # maxSurge limits growing, but not shrinking.
            grown = min(spec["replicas"], have + max(room, 0)) if have < spec["replicas"] else spec["replicas"]
            new = await self._newest(deployment, new, number, sets, grown)
            old = await self._shrink(old, new, spec["replicas"] - unavailable)
            old = await self._forget(old, spec.get("revisionHistoryLimit", 10))
        return [*old, new] if new else old

    def _has_pods(self, sets: list[Obj]) -> bool:
        uids = [s["metadata"]["uid"].encode() for s in sets]
        pods = self._client.peek("Pod", sets[0]["metadata"]["namespace"]) if sets else []
        return any(uid in pod.raw for pod in pods for uid in uids)

    async def _newest(self, deployment: Obj, new: Obj | None, number: str, sets: list[Obj], replicas: int) -> Obj:
        highest = max((_revision(s) for s in sets if s is not new), default=0)
        if new is None:
            new = await self._client.create(_replica_set(deployment, number, replicas, highest + 1))
        elif _revision(new) <= highest:
            # Rollback to an old template: its ReplicaSet becomes the newest revision.
            annotations = {**(new["metadata"].get("annotations") or {}), REVISION: str(highest + 1)}
            new = await self._client.update({**new, "metadata": {**new["metadata"], "annotations": annotations}})
        wanted = str(_revision(new))
        have = deployment["metadata"].setdefault("annotations", {})
        if have.get(REVISION) != wanted:
            have[REVISION] = wanted
            deployment.update(await self._client.update(deployment))
        return await self._scale(new, replicas)

    async def _scale(self, replica_set: Obj, replicas: int) -> Obj:
        if replica_set["spec"]["replicas"] == replicas:
            return replica_set
        return await self._client.update({**replica_set, "spec": {**replica_set["spec"], "replicas": replicas}})

    async def _shrink(self, old: list[Obj], new: Obj, least: int) -> list[Obj]:
        """Scale the old ReplicaSets down as far as maxUnavailable permits, beginning with pods that are not
        available."""
        total = sum(s["spec"]["replicas"] for s in [*old, new])
        spare = total - least - (new["spec"]["replicas"] - _available(new))
        result = []
        for replica_set in sorted(old, key=_revision):
            sick = replica_set["spec"]["replicas"] - _available(replica_set)
            take = min(max(sick, 0), max(spare, 0))
            spare -= take
            result.append((replica_set, take))
        spare = min(spare, sum(_available(s) for s in [*old, new]) - least)
        shrunk = []
        for replica_set, take in result:
            more = min(replica_set["spec"]["replicas"] - take, max(spare, 0))
            spare -= more
            shrunk.append(await self._scale(replica_set, replica_set["spec"]["replicas"] - take - more))
        return shrunk

    async def _forget(self, old: list[Obj], limit: int) -> list[Obj]:
        empty = [s for s in old if not s["spec"]["replicas"] and not (s.get("status") or {}).get("replicas")]
        gone = sorted(empty, key=_revision)[: max(len(empty) - limit, 0)]
        for replica_set in gone:
            await remove(self._client, replica_set)
        return [s for s in old if s not in gone]

    async def _report(self, deployment: Obj, sets: list[Obj]) -> None:
        number = template_hash(deployment["spec"]["template"])
        wanted = deployment["spec"]["replicas"]
        total, available = _count(sets, "replicas"), _count(sets, "availableReplicas")
        updated = _count([s for s in sets if s["metadata"]["labels"].get(HASH_LABEL) == number], "replicas")
        before = deployment.get("status") or {}
        unavailable = 0 if deployment["spec"]["strategy"]["type"] == "Recreate" else _limits(deployment["spec"])[1]
        enough = available >= wanted - unavailable
        done = updated == wanted == total == available
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            **nonzero(
                replicas=total,
                updatedReplicas=updated,
                readyReplicas=_count(sets, "readyReplicas"),
                availableReplicas=available,
                unavailableReplicas=max(wanted - available, 0),
            ),
            "conditions": [
                condition(before, "Available", enough, *_AVAILABLE[enough], self._now()),
                condition(before, "Progressing", True, *_PROGRESSING[done], self._now()),
            ],
        }
        await set_status(self._client, deployment, status)


_AVAILABLE = {
    True: ("MinimumReplicasAvailable", "Deployment has minimum availability."),
    False: ("MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
}
_PROGRESSING = {
    True: ("NewReplicaSetAvailable", "The newest ReplicaSet has successfully progressed."),
    False: ("ReplicaSetUpdated", "The newest ReplicaSet is progressing."),
}


def _count(sets: list[Obj], field: str) -> int:
    return sum((s.get("status") or {}).get(field, 0) for s in sets)


def _available(replica_set: Obj) -> int:
    return min(_count([replica_set], "availableReplicas"), int(replica_set["spec"]["replicas"]))


def _revision(replica_set: Obj) -> int:
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _limits(spec: Obj) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods. Percentages of maxSurge are rounded up, of maxUnavailable down. If both are
    0, the update could never progress, so maxUnavailable becomes 1."""
    rolling = spec["strategy"].get("rollingUpdate") or {}
    surge = _of(rolling.get("maxSurge", "25%"), spec["replicas"], up=True)
    unavailable = _of(rolling.get("maxUnavailable", "25%"), spec["replicas"], up=False)
    return surge, unavailable or int(not surge)


def _of(value: int | str, replicas: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = int(value.rstrip("%")) * replicas
    return -(-part // 100) if up else part // 100


def _replica_set(deployment: Obj, number: str, replicas: int, revision: int) -> Obj:
    metadata, spec = deployment["metadata"], deployment["spec"]
    template = {**spec["template"], "metadata": {**spec["template"].get("metadata", {})}}
    template["metadata"]["labels"] = {**(template["metadata"].get("labels") or {}), HASH_LABEL: number}
    selector = {**spec["selector"], "matchLabels": {**spec["selector"].get("matchLabels", {}), HASH_LABEL: number}}
    own = {
        "name": f"{metadata['name']}-{number}",
        "namespace": metadata["namespace"],
        "labels": template["metadata"]["labels"],
        "annotations": {REVISION: str(revision)},
        "ownerReferences": [owner_reference(deployment)],
    }
    content = {"replicas": replicas, "selector": selector, "template": template}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": own, "spec": content}
