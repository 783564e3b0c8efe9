"""The asynchronous API client of the lab's controllers and kubelets, within the API's process (over HTTP:
http_client.py).

Objects are JSON-like dicts. Each call returns a new copy. Every call has the same admission and validation as over
HTTP. Errors are status.ApiError with the API's code and reason.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nodenet.lab.apiserver import status
from nodenet.lab.apiserver.registry import DeleteOptions, Options, Patch, PatchType, Registry, Unknown
from nodenet.lab.apiserver.resources import BY_KIND, Resource
from nodenet.lab.apiserver.storage import Ref, Stored
from nodenet.lab.apiserver.watch import Query, WatchOptions, listing, watch

Obj = dict[str, Any]
_log = logging.getLogger(__name__)
_EXPIRED = 410


@dataclass(frozen=True, slots=True)
class Listing:
    """A complete list. A watch from `version` continues without losing changes."""

    items: list[Obj]
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """`old` None: the object is new. `new` None: it was deleted, and `old` is its last state. Else both are set."""

    old: Obj | None
    new: Obj | None


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is ADDED, MODIFIED, DELETED (with the last state) or BOOKMARK (the object has only a resourceVersion)."""

    type: str
    object: Obj


class Client(Protocol):
    """Kinds are named as in manifests ("Pod"), custom resources as <plural>.<group>.

    `namespace` "" means all for lists, default for single objects.
    """

    async def get(self, kind: str, name: str, namespace: str = "") -> Obj: ...

    async def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> Listing: ...

    async def create(self, obj: Obj, *, strict: bool = False, dry_run: bool = False) -> Obj: ...

    async def update(self, obj: Obj, subresource: str = "", *, strict: bool = False, dry_run: bool = False) -> Obj: ...

    async def patch(
        self,
        kind: str,
        name: str,
        patch: Any,
        namespace: str = "",
        subresource: str = "",
        patch_type: PatchType = PatchType.MERGE,
    ) -> Obj: ...

    async def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        grace: int | None = None,
        uid: str = "",
        propagation: str = "Background",
    ) -> None: ...

    def watch(
        self,
        kind: str,
        namespace: str = "",
        *,
        version: int | None = None,
        labels: str = "",
        fields: str = "",
        bookmarks: float | None = None,
    ) -> AsyncIterator[Event]: ...


def _options(strict: bool, dry_run: bool) -> Options:
    return Options(dry_run=dry_run, unknown=Unknown.STRICT if strict else Unknown.WARN)


class LocalClient:
    """The Client inside the API endpoint's own process and event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def custom(self) -> list[Resource]:
        """The resources of all CustomResourceDefinitions."""
        return [resource for resource in self._registry.catalog if resource.custom]

    def _resource(self, kind: str) -> Resource:
        """Look up a resource by Resource.key. Raises a 404 ApiError for a kind that is not served."""
        resource = BY_KIND.get(kind) or self._registry.catalog.by_key(kind)
        if resource is None:
            known = ", ".join(BY_KIND)
            raise status.ApiError(404, "NotFound", f"the lab does not know the kind {kind!r} (known: {known})")
        return resource

    async def get(self, kind: str, name: str, namespace: str = "") -> Obj:
        return self._registry.get(self._resource(kind), namespace or "default", name).decode()

    async def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> Listing:
        page = listing(self._registry.storage, Query(self._resource(kind), namespace, labels, fields))
        return Listing([stored.decode() for stored in page.items], page.version)

    async def create(self, obj: Obj, *, strict: bool = False, dry_run: bool = False) -> Obj:
        return self._registry.create(obj, options=_options(strict, dry_run)).decode()

    async def update(self, obj: Obj, subresource: str = "", *, strict: bool = False, dry_run: bool = False) -> Obj:
        return self._registry.update(obj, subresource=subresource, options=_options(strict, dry_run)).decode()

    async def patch(
        self,
        kind: str,
        name: str,
        patch: Any,
        namespace: str = "",
        subresource: str = "",
        patch_type: PatchType = PatchType.MERGE,
    ) -> Obj:
        resource = self._resource(kind)
        place = namespace or "default" if resource.namespaced else ""
        return self._registry.patch(resource, place, name, Patch(patch_type, patch), subresource).decode()

    async def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        grace: int | None = None,
        uid: str = "",
        propagation: str = "Background",
    ) -> None:
        options = DeleteOptions(grace=grace, uid=uid, propagation=propagation)
        self._registry.delete(self._resource(kind), namespace or "default", name, options)

    def peek(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> Sequence[Stored]:
        """The stored objects without decoding them. Cheap if labels and fields are enough."""
        return listing(self._registry.storage, Query(self._resource(kind), namespace, labels, fields)).items

    async def bind(self, name: str, namespace: str, node: str) -> Obj:
        """Assign a pod to a node."""
        return self._registry.bind(namespace, name, node).decode()

    async def watch(
        self,
        kind: str,
        namespace: str = "",
        *,
        version: int | None = None,
        labels: str = "",
        fields: str = "",
        bookmarks: float | None = None,
    ) -> AsyncIterator[Event]:
        """Endless. Without `version` it starts with all existing objects. Raises ApiError 410 if the reader is too slow
        for the history."""
        query = Query(self._resource(kind), namespace, labels, fields)
        async for event in watch(self._registry.storage, query, WatchOptions(version, bookmark_seconds=bookmarks)):
            if event.object is not None:
                yield Event(event.type, event.object.decode())
            else:
                yield Event(event.type, {"kind": kind, "metadata": {"resourceVersion": str(event.version)}})

    async def follow(self, kind: str, fields: str = "") -> AsyncIterator[Change]:
        """Yield all existing objects, then every change. Endless. A reader that is too slow for the history gets the
        difference to a new list."""
        known: dict[Ref, Obj] = {}
        while True:
            listing = await self.list(kind, fields=fields)
            found = {_ref(obj): obj for obj in listing.items}
            for ref, old in known.items():
                # Another uid means that the object was deleted and a new one has its name.
                if ref not in found or found[ref]["metadata"]["uid"] != old["metadata"]["uid"]:
                    yield Change(old, None)
            for ref, obj in found.items():
                before = known.get(ref)
                same = before is not None and before["metadata"]["uid"] == obj["metadata"]["uid"]
                yield Change(before if same else None, obj)
            known = found
            try:
                async for event in self.watch(kind, version=listing.version, fields=fields):
                    ref = _ref(event.object)
                    if event.type == "DELETED":
                        known.pop(ref, None)
                        yield Change(event.object, None)
                    elif event.type != "BOOKMARK":
                        before, known[ref] = known.get(ref), event.object
                        yield Change(before, event.object)
            except status.ApiError as error:
                if error.code != _EXPIRED:
                    raise
                _log.warning("%s: fell behind the changes, listing again", kind)


def _ref(obj: Obj) -> Ref:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
