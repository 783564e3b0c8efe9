"""StatefulSet -> Pods with ordinal names, one by one (OrderedReady) or all at once (Parallel).

Rules: kubernetes pkg/controller/statefulset. Old templates are not kept: a recreated pod gets the current template,
also below spec.updateStrategy.rollingUpdate.partition. volumeClaimTemplates are not supported.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.tables import is_ready
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import (
    REVISION_LABEL,
    Key,
    Obj,
    claim,
    deleting,
    finished,
    get,
    key_of,
    nonzero,
    owner_keys,
    pod_from,
    ready,
    remove,
    set_status,
    template_hash,
)


class StatefulSets(Controller):
    kinds = ("StatefulSet", "Pod")

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        if kind == "StatefulSet":
            return (key_of(new or old or {}),)
        return owner_keys("StatefulSet", old, new)

    async def sync(self, key: Key) -> None:
        owner = await get(self._client, "StatefulSet", key)
        if owner is None:
            return
        pods = {ordinal(pod): pod for pod in await claim(self._client, owner, "Pod", adopt=False)}
        revision = f"{key[1]}-{template_hash(owner['spec']['template'])}"
        if not deleting(owner):
            await self._step(owner, pods, revision)
        await self._report(owner, list(pods.values()), revision)

    async def _step(self, owner: Obj, pods: dict[int, Obj], revision: str) -> None:
        """Do everything that is possible now. Events of the pods cause the next step."""
        spec = owner["spec"]
        start = (spec.get("ordinals") or {}).get("start", 0)
        wanted = range(start, start + spec["replicas"])
        ordered = spec["podManagementPolicy"] == "OrderedReady"
        for number in wanted:
            pod = pods.get(number)
            if pod is not None and finished(pod) and not deleting(pod):
                await remove(self._client, pod)
                return
            if pod is None:
                pod = pods[number] = await self._client.create(_pod(owner, number, revision))
            if ordered and (deleting(pod) or not is_ready(pod)):
                return
        surplus = sorted((number for number in pods if number not in wanted), reverse=True)
        for number in surplus:
            if not deleting(pods[number]):
                await remove(self._client, pods[number])
            if ordered:
                return
        if not surplus:
            await self._update(spec, [pods[number] for number in wanted], revision, start)

    async def _update(self, spec: Obj, pods: list[Obj], revision: str, start: int) -> None:
        """Replace pods of an older template one at a time, the highest ordinal first."""
        if spec["updateStrategy"]["type"] != "RollingUpdate" or any(deleting(p) or not is_ready(p) for p in pods):
            return
        partition = start + (spec["updateStrategy"].get("rollingUpdate") or {}).get("partition", 0)
        for pod in reversed(pods):
            if ordinal(pod) >= partition and _revision(pod) != revision:
                await remove(self._client, pod)
                return

    async def _report(self, owner: Obj, pods: list[Obj], revision: str) -> None:
        present = [pod for pod in pods if not deleting(pod)]
        updated = sum(1 for pod in present if _revision(pod) == revision)
        done = updated == len(present) == owner["spec"]["replicas"] and ready(present) == len(present)
        current = revision if done else (owner.get("status") or {}).get("currentRevision", revision)
        status = {
            "replicas": len(present),
            **nonzero(
                readyReplicas=ready(present),
                availableReplicas=ready(present),
                currentReplicas=sum(1 for pod in present if _revision(pod) == current),
                updatedReplicas=updated,
            ),
            "observedGeneration": owner["metadata"]["generation"],
            "currentRevision": current,
            "updateRevision": revision,
        }
        await set_status(self._client, owner, status)


def ordinal(pod: Obj) -> int:
    """The number at the end of the pod's name, or -1 if there is none."""
    text = pod["metadata"]["name"].rpartition("-")[2]
    return int(text) if text.isdigit() else -1


def _revision(pod: Obj) -> str:
    return str((pod["metadata"].get("labels") or {}).get(REVISION_LABEL, ""))


def _pod(owner: Obj, number: int, revision: str) -> Obj:
    name = f"{owner['metadata']['name']}-{number}"
    labels = {
        REVISION_LABEL: revision,
        "statefulset.kubernetes.io/pod-name": name,
        "apps.kubernetes.io/pod-index": str(number),
    }
    pod = pod_from(owner, owner["spec"]["template"], labels, name)
    pod["spec"] |= {"hostname": name}
    if owner["spec"].get("serviceName"):
        pod["spec"]["subdomain"] = owner["spec"]["serviceName"]
    return pod
