"""Service + Pods -> EndpointSlices. Writes what slices_plan.py computes. Services without a selector are ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.controllers.manager import Controller
from nodenet.lab.controllers.objects import Key, Obj, deleting, get, key_of, remove
from nodenet.lab.controllers.slices_plan import MANAGED_BY, MANAGER, SERVICE_NAME, ZONE, plan

# When the pods of a slice last changed: proxies measure from here until their rules have it.
CHANGED = "endpoints.kubernetes.io/last-change-trigger-time"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class EndpointSlices(Controller):
    kinds = ("Service", "Pod", "EndpointSlice", "Node")
    # A burst of pod changes becomes one write of a slice, not one write per pod.
    delay = 0.02

    def __init__(self, client: LocalClient, clock: Callable[[], str] = _now) -> None:
        """`clock`: the time with fractions of a second, as in the annotation."""
        self._client = client
        self._clock = clock
        self._selectors: dict[Key, dict[str, str]] = {}
        # When the first pod of a Service changed since its last sync.
        self._changed: dict[Key, str] = {}

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Key]:
        if kind == "Service":
            return self._service(new or old or {}, new is None)
        if kind == "Node":
            return list(self._selectors) if _zone(old) != _zone(new) else ()
        if kind == "EndpointSlice":
            labels = [(obj["metadata"]["namespace"], obj["metadata"].get("labels") or {}) for obj in (old, new) if obj]
            return [
                (ns, found[SERVICE_NAME])
                for ns, found in labels
                if found.get(MANAGED_BY) == MANAGER and SERVICE_NAME in found
            ]
        found = [
            key
            for key in self._selectors
            if _selected(self._selectors[key], key, old) or _selected(self._selectors[key], key, new)
        ]
        for key in found:
            if key not in self._changed:
                self._changed[key] = self._clock()
        return found

    def _service(self, service: Obj, gone: bool) -> tuple[Key]:
        key = key_of(service)
        selector = service["spec"].get("selector")
        if gone or not selector:
            self._selectors.pop(key, None)
        else:
            self._selectors[key] = selector
        return (key,)

    async def sync(self, key: Key) -> None:
        namespace, name = key
        changed_at = self._changed.pop(key, "")
        service = await get(self._client, "Service", key)
        found = await self._client.list("EndpointSlice", namespace, f"{SERVICE_NAME}={name},{MANAGED_BY}={MANAGER}")
        slices = found.items
        if service is None or service["spec"]["type"] == "ExternalName":
            for old in slices:
                await remove(self._client, old)
            return
        selector = service["spec"].get("selector")
        if not selector or deleting(service):
            return
        terms = ",".join(f"{label}={value}" for label, value in selector.items())
        pods = (await self._client.list("Pod", namespace, terms)).items
        zones = {s.ref[1]: s.labels[ZONE] for s in self._client.peek("Node") if ZONE in s.labels}
        todo = plan(service, pods, zones, slices)
        for written in (*todo.create, *todo.update) if changed_at else ():
            # A new mapping: the slice that was read may share the old one.
            annotations = written["metadata"].get("annotations") or {}
            written["metadata"] = {**written["metadata"], "annotations": {**annotations, CHANGED: changed_at}}
        try:
            for new in todo.create:
                await self._client.create(new)
        except ApiError as error:
            # A namespace that is being deleted accepts no new slices, and needs none.
            if error.code not in (403, 404):
                raise
        for changed in todo.update:
            await self._client.update(changed)
        for old in todo.delete:
            await remove(self._client, old)


def _selected(selector: dict[str, str], key: Key, pod: Obj | None) -> bool:
    if pod is None or pod["metadata"]["namespace"] != key[0]:
        return False
    return selector.items() <= (pod["metadata"].get("labels") or {}).items()


def _zone(node: Obj | None) -> str | None:
    return (node["metadata"].get("labels") or {}).get(ZONE) if node else None
