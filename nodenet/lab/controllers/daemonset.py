"""DaemonSet -> one Pod on every node on which its template may run. A new template replaces the pods one by one.

Rules: kubernetes pkg/controller/daemon. The pods are created with spec.nodeName set, because the node is known.
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
    remove,
    set_status,
    template_hash,
)
from nodenet.lab.controllers.placement import selects, untolerated

# Tolerations of every DaemonSet pod: it starts before its node is ready, and remains while the node is not ready.
_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/not-ready", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
)


class DaemonSets(Controller):
    kinds = ("DaemonSet", "Pod", "Node")

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        if kind == "DaemonSet":
            return (key_of(new or old or {}),)
        if kind == "Node":
            return [stored.ref for stored in self._client.peek("DaemonSet")]
        return owner_keys("DaemonSet", old, new)

    async def sync(self, key: Key) -> None:
        owner = await get(self._client, "DaemonSet", key)
        if owner is None:
            return
        pods = await claim(self._client, owner, "Pod", adopt=False)
        revision = template_hash(owner["spec"]["template"])
        spec = _tolerant(owner["spec"]["template"]["spec"])
        nodes = [stored.decode() for stored in self._client.peek("Node")]
        wanted = [n["metadata"]["name"] for n in nodes if selects(spec, n) and not untolerated(spec, n)]
        if not deleting(owner):
            pods = await self._place(owner, pods, wanted, revision)
        await self._report(owner, pods, wanted, revision)

    async def _place(self, owner: Obj, pods: list[Obj], wanted: list[str], revision: str) -> list[Obj]:
        kept: dict[str, Obj] = {}
        for pod in pods:
            node = pod["spec"].get("nodeName", "")
            if deleting(pod):
                # Create the next pod only after this one is gone, because it may use host ports.
                kept.setdefault(node, pod)
            elif finished(pod) or node not in wanted or node in kept:
                await remove(self._client, pod)
            else:
                kept[node] = pod
        template = {**owner["spec"]["template"], "spec": _tolerant(owner["spec"]["template"]["spec"])}
        for node in wanted:
            if node not in kept:
                pod = pod_from(owner, template, {REVISION_LABEL: revision})
                pod["spec"] |= {"nodeName": node}
                kept[node] = await self._client.create(pod)
        await self._update(owner, list(kept.values()), revision)
        return list(kept.values())

    async def _update(self, owner: Obj, pods: list[Obj], revision: str) -> None:
        if owner["spec"]["updateStrategy"]["type"] != "RollingUpdate":
            return
        old = [pod for pod in pods if not deleting(pod) and _revision(pod) != revision]
        missing = sum(1 for pod in pods if deleting(pod) or not is_ready(pod))
        # First replace pods that are not ready: that does not reduce availability.
        sick = [pod for pod in old if not is_ready(pod)]
        for pod in sick or (old[:1] if not missing else []):
            await remove(self._client, pod)

    async def _report(self, owner: Obj, pods: list[Obj], wanted: list[str], revision: str) -> None:
        present = [pod for pod in pods if not deleting(pod) and pod["spec"].get("nodeName") in wanted]
        ready = sum(1 for pod in present if is_ready(pod))
        status = {
            "currentNumberScheduled": len(present),
            "desiredNumberScheduled": len(wanted),
            "numberMisscheduled": 0,
            "numberReady": ready,
            **nonzero(
                updatedNumberScheduled=sum(1 for pod in present if _revision(pod) == revision),
                numberAvailable=ready,
                numberUnavailable=len(wanted) - ready,
            ),
            "observedGeneration": owner["metadata"]["generation"],
        }
        await set_status(self._client, owner, status)


def _tolerant(spec: Obj) -> Obj:
    more = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED]
    given = spec.get("tolerations") or []
    return {**spec, "tolerations": [*given, *(t for t in more if t not in given)]}


def _revision(pod: Obj) -> str:
    return str((pod["metadata"].get("labels") or {}).get(REVISION_LABEL, ""))
