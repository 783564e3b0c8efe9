"""The store of Kubernetes objects and local endpoints: it takes deltas and returns frozen Snapshots. No I/O, no
clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import is_
from typing import Any, NamedTuple

from netpolicy.types import ClusterPolicy, NetworkPolicy
from nodenet.endpoint import AttachmentKey
from nodenet.evolved import Evolved, evolve
from nodenet.kinds import KINDS, Kind
from nodenet.model import Endpoint, EndpointSlice, IPAddress, Namespace, Node, ObjectRef, Pod, Service


class Op(StrEnum):
    """The type of a change, as in the Kubernetes watch protocol."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Delta(NamedTuple):
    """One object was created, changed or deleted."""

    op: Op
    obj: object


class Removal(NamedTuple):
    """An object was deleted; only its key is known."""

    kind: Kind
    key: tuple[str, str]


class Listing(NamedTuple):
    """A complete list of one kind. `keep`: keys of objects in the list that could not be decoded."""

    kind: Kind
    objects: tuple[object, ...]
    keep: tuple[tuple[str, str], ...] = ()


StoreEvent = Delta | Removal | Listing


def listings(objects: Iterable[object], kinds: Iterable[Kind] = KINDS) -> list[Listing]:
    """One Listing for every kind, which together contain exactly these objects."""
    found: dict[Kind, list[object]] = {kind: [] for kind in kinds}
    by_type = {kind.holds: kind for kind in found}
    for obj in objects:
        found[by_type[type(obj)]].append(obj)
    return [Listing(kind, tuple(listed)) for kind, listed in found.items()]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent view. If nothing of a kind changed, its mapping is the same object as in the previous Snapshot.

    Cluster-scoped objects have an ObjectRef with an empty namespace. `revision` grows with every change of the store.
    """

    revision: int = 0
    pods: Mapping[ObjectRef, Pod] = field(default_factory=dict)
    namespaces: Mapping[ObjectRef, Namespace] = field(default_factory=dict)
    nodes: Mapping[ObjectRef, Node] = field(default_factory=dict)
    services: Mapping[ObjectRef, Service] = field(default_factory=dict)
    slices: Mapping[ObjectRef, EndpointSlice] = field(default_factory=dict)
    policies: Mapping[ObjectRef, NetworkPolicy] = field(default_factory=dict)
    cluster_policies: Mapping[ObjectRef, ClusterPolicy] = field(default_factory=dict)
    endpoints: Mapping[AttachmentKey, Endpoint] = field(default_factory=dict)

    def has_policy(self, ref: tuple[str, str]) -> bool:
        """Whether there is a NetworkPolicy of this name; without a namespace, a ClusterNetworkPolicy."""
        return ObjectRef(*ref) in (self.policies if ref[0] else self.cluster_policies)


# The largest number of removed pods in memory. The kubelet may request a removed pod's network for a few minutes.
_REMOVED_PODS = 2048


class _Claims:
    """Counts the pods that claim each address. If two pods claim one, their standing decides between them, so a changed
    standing then counts as a change of the pod."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._count: dict[IPAddress, int] = {}
        for pod in pods:
            self.replace(None, pod)

    def replace(self, before: Pod | None, after: Pod | None) -> None:
        for pod, change in ((before, -1), (after, 1)):
            for address in pod.ips if pod is not None and pod.holds_addresses else ():
                count = self._count.get(address, 0) + change
                if count:
                    self._count[address] = count
                else:
                    del self._count[address]

    def may_move_an_address(self, before: object, after: object) -> bool:
        """Whether the changed standing of an otherwise equal pod may move an address from one pod to another."""
        if not isinstance(before, Pod) or not isinstance(after, Pod) or before.standing == after.standing:
            return False
        return any(self._count.get(address, 0) > 1 for address in after.ips)


class Store:
    """Holds the newest version of every object. Not thread-safe, except for `pod_is_removed`; Snapshots may be
    shared.

    `node_name`: only pods of this node are remembered after their removal, because only they can still get an ADD
    here. "": pods of every node.
    """

    def __init__(self, kinds: Iterable[Kind] = KINDS, node_name: str = "") -> None:
        self._node_name = node_name
        self.revision = 0
        self._kinds = {kind.holds: kind for kind in kinds}
        # UIDs of recently removed pods, oldest first. UIDs are never reused.
        self._removed: dict[str, None] = {}
        self._objects: dict[Kind, dict[tuple[str, str], Any]] = {kind: {} for kind in self._kinds.values()}
        # The fields of the last Snapshot.
        self._views: dict[str, Mapping[Any, Any]] = {kind.place: Evolved({}) for kind in self._kinds.values()}
        # Changes since the last Snapshot; None: the object was deleted.
        self._pending: dict[Kind, dict[tuple[str, str], Any]] = {}
        # How many objects were added, changed or deleted so far.
        self.changes: dict[Kind, int] = dict.fromkeys(self._kinds.values(), 0)
        self._missing = set(self._kinds.values())
        self._claims = _Claims()

    @property
    def synced(self) -> bool:
        """Whether the first list of every kind has arrived. Before that a Snapshot is incomplete: write nothing from
        it."""
        return not self._missing

    @property
    def missing(self) -> tuple[Kind, ...]:
        """The kinds whose first list has not arrived."""
        return tuple(kind for kind in self._kinds.values() if kind in self._missing)

    def kind_of(self, event: StoreEvent) -> Kind:
        """The kind of an event's objects."""
        return self._kinds[type(event.obj)] if isinstance(event, Delta) else event.kind

    def feed(self, event: StoreEvent) -> bool:
        """Process one event: calls `apply`, `delete` or `replace`."""
        if isinstance(event, Delta):
            return self.apply(event.op, event.obj)
        if isinstance(event, Removal):
            return self.delete(event.kind, event.key)
        return self.replace(event.kind, event.objects, event.keep)

    def apply(self, op: Op, obj: object) -> bool:
        """Process one delta. Returns whether anything changed. A changed standing of a pod counts only if it may move
        an address."""
        kind = self._kinds[type(obj)]
        key = kind.key(obj)
        if op is Op.DELETED:
            return self.delete(kind, key)
        objects = self._objects[kind]
        before = objects.get(key)
        objects[key] = obj
        self._add_to_next_snapshot(kind, {key: obj})
        if isinstance(obj, Pod):
            self._claims.replace(before, obj)
        if before == obj and not self._claims.may_move_an_address(before, obj):
            return False
        # The object may be a recreated pod: the pod with the old UID is then removed.
        self._note_removal(before, obj)
        self.revision += 1
        self.changes[kind] += 1
        return True

    def delete(self, kind: Kind, key: tuple[str, str]) -> bool:
        """Delete one object by its key. Returns whether it existed."""
        before = self._objects[kind].pop(key, None)
        if before is None:
            return False
        if kind.holds is Pod:
            self._claims.replace(before, None)
        self._note_removal(before)
        self._add_to_next_snapshot(kind, {key: None})
        self.revision += 1
        self.changes[kind] += 1
        return True

    def replace(self, kind: Kind, objects: Iterable[object], keep: Iterable[tuple[str, str]] = ()) -> bool:
        """Replace the objects of this kind with a new list. Objects that are missing from it are deleted. For keys in
        `keep` (present but not decodable) the previous version remains.

        Returns whether anything changed, or this was the first list of the kind.
        """
        old = self._objects[kind]
        new = {kind.key(obj): obj for obj in objects}
        for key in keep:
            if key in old:
                new.setdefault(key, old[key])
        first = kind in self._missing
        self._missing.discard(kind)
        self._objects[kind] = new
        self._add_to_next_snapshot(kind, {**dict.fromkeys(old.keys() - new.keys()), **new})
        if kind.holds is Pod:
            self._claims = _Claims(pod for pod in new.values() if isinstance(pod, Pod))
        if new == old and not any(self._claims.may_move_an_address(old[key], obj) for key, obj in new.items()):
            return first
        for key, gone in old.items():
            self._note_removal(gone, new.get(key))
        self.changes[kind] += len(old.keys() - new.keys()) + sum(old.get(key) != obj for key, obj in new.items())
        self.revision += 1
        return True

    def pod_is_removed(self, uid: str) -> bool:
        """Whether a pod with this UID existed and was removed: a CNI ADD for it need not wait. Safe to call from any
        thread."""
        return uid in self._removed

    def snapshot(self) -> Snapshot:
        """The current state. The cost is proportional to the changes since the last call."""
        for kind, changes in self._pending.items():
            self._views[kind.place] = evolve(self._views[kind.place], changes, is_)
        self._pending.clear()
        return Snapshot(self.revision, **self._views)

    def _note_removal(self, old: object | None, new: object | None = None) -> None:
        """Remember the UID of a removed pod. `new` is the object that now has the name of `old`; a recreated pod has
        another UID."""
        if not isinstance(old, Pod) or (isinstance(new, Pod) and new.uid == old.uid):
            return
        if self._node_name and old.node_name != self._node_name:
            return
        self._removed[old.uid] = None
        if len(self._removed) > _REMOVED_PODS:
            del self._removed[next(iter(self._removed))]

    def _add_to_next_snapshot(self, kind: Kind, changes: Mapping[tuple[str, str], Any]) -> None:
        """Add changes to the next Snapshot. A pod that differs only in its standing is included, so that its standing
        is current when another pod claims the same address."""
        self._pending.setdefault(kind, {}).update(changes)
