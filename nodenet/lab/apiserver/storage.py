"""Stores the objects, a common version counter, and a bounded history of changes for watchers. registry.py has the
rules.

Objects are stored as JSON text, so that callers cannot change them by accident and many watchers share one encoding.
Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from nodenet.lab.apiserver.resources import RESOURCES
from nodenet.lab.apiserver.status import expired

Ref = tuple[str, str]
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one object. `ref` is (namespace, name). `fields`: the values for field selectors."""

    kind: str
    ref: Ref
    uid: str
    version: int
    raw: bytes
    labels: Mapping[str, str]
    fields: Mapping[str, str]

    def decode(self) -> dict[str, Any]:
        """A new copy of the object, which the caller may change."""
        decoded: dict[str, Any] = _decoder.decode(self.raw)
        return decoded


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `new` None: the object was deleted, and `last` is its final state with the version of the
    deletion."""

    version: int
    old: Stored | None
    new: Stored | None
    last: Stored


FIELDS: dict[str, tuple[str, ...]] = {
    "Pod": (
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork"),
        *("status.phase", "status.podIP", "status.nominatedNodeName"),
    ),
    "Event": (
        *(f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")),
        *("reason", "reportingComponent", "type"),
    ),
    "Namespace": ("status.phase",),
    "Node": ("spec.unschedulable",),
    "Service": ("spec.clusterIP", "spec.type"),
    "ReplicaSet": ("status.replicas",),
    "Job": ("status.successful",),
}


# Boolean fields for selectors. If absent they are false.
_BOOLEANS = frozenset({"spec.hostNetwork", "spec.unschedulable"})


def field_names(kind: str) -> frozenset[str]:
    """The fields that a field selector of this kind may use."""
    return frozenset(("metadata.name", "metadata.namespace", *FIELDS.get(kind, ())))


def _fields(kind: str, ref: Ref, obj: Mapping[str, Any]) -> dict[str, str]:
    found = {"metadata.namespace": ref[0], "metadata.name": ref[1]}
    for path in FIELDS.get(kind, ()):
        section, _, key = path.partition(".")
        value = (obj.get(section) or {}).get(key) if key else obj.get(section)
        if path in _BOOLEANS:
            value = bool(value)
        found[path] = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    return found


def make(kind: str, obj: Mapping[str, Any]) -> Stored:
    metadata = obj["metadata"]
    ref = (metadata.get("namespace", ""), metadata["name"])
    return Stored(
        kind,
        ref,
        metadata["uid"],
        int(metadata["resourceVersion"]),
        _encoder.encode(obj),
        metadata.get("labels") or {},
        _fields(kind, ref, obj),
    )


class Log:
    """The last changes of one kind. `oldest` is the version before the first one that is kept."""

    def __init__(self, limit: int, oldest: int) -> None:
        self.oldest = oldest
        self._limit = limit
        self._changes: list[Change] = []
        self._waiting: set[asyncio.Future[None]] = set()
        # True if the kind is no longer served: then watches end after the last change.
        self.closed = False

    def append(self, change: Change) -> None:
        self._changes.append(change)
        # Trim many entries at once: each removal at the front of a list moves all others.
        if len(self._changes) >= 2 * self._limit:
            self.forget(len(self._changes) - self._limit)
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def forget(self, count: int | None = None) -> None:
        """Delete the oldest `count` changes; None: all."""
        dropped = self._changes[:count]
        if dropped:
            self.oldest = dropped[-1].version
            del self._changes[: len(dropped)]

    def after(self, version: int) -> list[Change]:
        """The changes since `version`, in order. Raises 410 if some of them are no longer kept."""
        if version < self.oldest:
            raise expired(f"too old resource version: {version} ({self.oldest})")
        low, high = 0, len(self._changes)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._changes[middle].version <= version else (low, middle)
        return self._changes[low:]

    async def wait(self, version: int, seconds: float | None) -> bool:
        """Wait until there is a change after `version` (True) or `seconds` have passed (False)."""
        if self._changes and self._changes[-1].version > version:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            done, _ = await asyncio.wait((future,), timeout=seconds)
            return bool(done)
        finally:
            self._waiting.discard(future)


class Storage:
    """All objects of all kinds, by Resource.key.

    `history`: how many changes of each kind a watcher may be behind.
    """

    def __init__(self, history: int, first_version: int) -> None:
        self.version = first_version
        self._history = history
        self._objects: dict[str, dict[Ref, Stored]] = {}
        self.logs: dict[str, Log] = {}
        for resource in RESOURCES:
            self.add(resource.key)

    def add(self, kind: str) -> None:
        """Start to store objects of this kind (Resource.key). Its history begins now."""
        self._objects.setdefault(kind, {})
        self.logs.setdefault(kind, Log(self._history, self.version))

    def drop(self, kind: str) -> None:
        """Remove a kind: delete its objects one by one, then end its watches."""
        for ref in sorted(self._objects[kind]):
            self.remove(kind, ref)
        del self._objects[kind]
        self.logs.pop(kind).close()

    def get(self, kind: str, ref: Ref) -> Stored | None:
        return self._objects[kind].get(ref)

    def items(self, kind: str, namespace: str = "") -> list[Stored]:
        """The objects of a kind, sorted by namespace and name."""
        found = self._objects[kind]
        refs = sorted(ref for ref in found if not namespace or ref[0] == namespace)
        return [found[ref] for ref in refs]

    def items_at(self, kind: str, namespace: str, version: int) -> list[Stored]:
        """The list as it was at `version`, computed by undoing later changes. Raises 410 if that is older than the
        history."""
        if version >= self.version:
            return self.items(kind, namespace)
        found = dict(self._objects[kind])
        for change in reversed(self.logs[kind].after(version)):
            if change.old is None:
                found.pop(change.last.ref, None)
            else:
                found[change.last.ref] = change.old
        return [found[ref] for ref in sorted(found) if not namespace or ref[0] == namespace]

    def put(self, kind: str, obj: dict[str, Any]) -> Stored:
        """Store `obj` with a new resourceVersion, which is also set in `obj`."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        new = make(kind, obj)
        old = self._objects[kind].get(new.ref)
        self._objects[kind][new.ref] = new
        self.logs[kind].append(Change(self.version, old, new, new))
        return new

    def remove(self, kind: str, ref: Ref) -> Stored:
        old = self._objects[kind].pop(ref)
        self.version += 1
        obj = old.decode()
        obj["metadata"]["resourceVersion"] = str(self.version)
        last = make(kind, obj)
        self.logs[kind].append(Change(self.version, old, None, last))
        return last


Match = Callable[[Stored], bool]


def visible(changes: Iterable[Change], match: Match) -> Iterable[tuple[str, Stored]]:
    """The changes as a watcher with a selector sees them. An object that no longer matches is DELETED for it."""
    for change in changes:
        before = change.old is not None and match(change.old)
        after = change.new is not None and match(change.new)
        if after and change.new is not None:
            yield ("MODIFIED" if before else "ADDED"), change.new
        elif before and change.old is not None:
            yield "DELETED", change.last if change.new is None else _restamped(change.old, change.version)


def _restamped(stored: Stored, version: int) -> Stored:
    obj = stored.decode()
    obj["metadata"]["resourceVersion"] = str(version)
    return make(stored.kind, obj)
