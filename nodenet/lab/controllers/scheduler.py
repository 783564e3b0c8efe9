"""Assigns pending pods to nodes: to the suitable node with the fewest pods. If there is none, it reports the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.storage import Stored
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import Obj, condition, controller_of, deleting
from nodenet.lab.controllers.placement import obstacle
from nodenet.lab.pod_events import PodEvents

NAME = "default-scheduler"
_OVER = ("Succeeded", "Failed")


class Scheduler(Controller):
    """Has one key for all pods: each sync goes through the pending pods in the order of their creation."""

    kinds = ("Pod", "Node")

    def __init__(self, client: LocalClient, now: Callable[[], str]) -> None:
        self._client = client
        self._now = now
        self._events = PodEvents(client, now)

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[str]:
        if kind == "Node":
            return ("pods",)
        if new is None:
            # A deleted pod makes room for a pending one.
            return ("pods",)
        # A new pod that already has a nodeName is checked once, because the node may not exist.
        return ("pods",) if not deleting(new) and (old is None or not new["spec"].get("nodeName")) else ()

    async def sync(self, key: str) -> None:
        nodes = {stored.ref[1]: stored.decode() for stored in self._client.peek("Node")}
        pods = self._client.peek("Pod")
        load = Counter(p.fields["spec.nodeName"] for p in pods if p.fields["status.phase"] not in _OVER)
        waiting = [p for p in pods if not p.fields["spec.nodeName"] and p.fields["spec.schedulerName"] == NAME]
        siblings = _Siblings(pods)
        for stored in sorted(waiting, key=lambda p: p.version):
            pod = stored.decode()
            if deleting(pod) or pod["spec"].get("schedulingGates"):
                continue
            obstacles = {name: obstacle(pod["spec"], node, load[name]) for name, node in nodes.items()}
            fits = [name for name, why in obstacles.items() if not why]
            if not fits:
                await self._refuse(pod, obstacles)
                continue
            owner = (controller_of(pod) or {}).get("uid", "")
            chosen = min(fits, key=lambda name: (load[name], siblings.count(owner, name), name))
            await self._client.bind(pod["metadata"]["name"], pod["metadata"]["namespace"], chosen)
            load[chosen] += 1
            siblings.add(owner, chosen)
        await self._lost([p for p in pods if p.fields["spec.nodeName"] and p.fields["spec.nodeName"] not in nodes])

    async def _refuse(self, pod: Obj, obstacles: dict[str, str]) -> None:
        reasons = Counter(obstacles.values())
        listed = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
        message = f"0/{len(obstacles)} nodes are available" + (f": {listed}." if listed else ".")
        await self._condition(pod, "Unschedulable", message)

    async def _lost(self, pods: Sequence[Stored]) -> None:
        """Report pods whose nodeName is a node that does not exist. They wait for it."""
        for stored in pods:
            if stored.fields["status.phase"] == "Pending":
                message = f"spec.nodeName: there is no node {stored.fields['spec.nodeName']}"
                await self._condition(stored.decode(), "NodeNotFound", message)

    async def _condition(self, pod: Obj, reason: str, message: str) -> None:
        status = pod["status"]
        new = condition(status, "PodScheduled", False, reason, message, self._now())
        del new["lastUpdateTime"]
        others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
        if [*others, new] != (status.get("conditions") or []):
            await self._client.update({**pod, "status": {**status, "conditions": [*others, new]}}, "status")
            await self._events.warn(pod, "FailedScheduling", message, NAME)


class _Siblings:
    """How many pods of an owner are on a node. Counted only when needed."""

    def __init__(self, pods: Sequence[Stored]) -> None:
        self._pods = pods
        self._known: dict[str, Counter[str]] = {}

    def _of(self, owner: str) -> Counter[str]:
        if owner not in self._known:
            text = owner.encode()
            on = (p.fields["spec.nodeName"] for p in self._pods if owner and text in p.raw)
            self._known[owner] = Counter(on)
        return self._known[owner]

    def count(self, owner: str, node: str) -> int:
        return self._of(owner)[node] if owner else 0

    def add(self, owner: str, node: str) -> None:
        if owner:
            self._of(owner)[node] += 1
