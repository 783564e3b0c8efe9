"""Which pods have labels that are not known, so that no selector can be evaluated for them. Pure.

Their own labels or those of their Namespace cannot be read, or the API has not sent the Namespace yet: Pods and
Namespaces arrive on different watches. Without its labels a Namespace matches DoesNotExist and NotIn, and a deny of its
labels does not match. So such a pod has no identity: its endpoint is isolated (compile/endpoints.py), and pods with
rules of ClusterNetworkPolicies do not talk to it (compile/ipcache.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from nodenet.evolved import changed_keys, evolve
from nodenet.model import Namespace, ObjectRef, Pod

Namespaces = Mapping[ObjectRef, Namespace]


def reason_unread(pod: Pod, namespaces: Namespaces) -> str:
    """Why the labels of a pod are not known, as a clause; "" if they are."""
    if pod.labels_unread:
        return "a label of the pod could not be read"
    return _reason(pod.ref.namespace, namespaces)


def _reason(name: str, namespaces: Namespaces) -> str:
    namespace = namespaces.get(ObjectRef("", name))
    if namespace is None:
        return f"the API has not sent Namespace {name} yet"
    return f"a label of Namespace {name} could not be read" if namespace.labels_unread else ""


class UnreadLabels:
    """Marks pods of Namespaces whose labels are not known as `labels_unread`, for one Snapshot after the other."""

    def __init__(self) -> None:
        self._pods: Mapping[ObjectRef, Pod] = {}
        self._namespaces: Namespaces = {}
        # The number of pods in each namespace, and the namespaces with pods whose labels are not known.
        self._sizes: Counter[str] = Counter()
        self._unread: frozenset[str] = frozenset()
        self._marked: Mapping[ObjectRef, Pod] = {}

    def compile(self, pods: Mapping[ObjectRef, Pod], namespaces: Namespaces) -> Mapping[ObjectRef, Pod]:
        """Returns `pods` itself if the labels of all Namespaces are known."""
        changed = changed_keys(self._pods, pods)
        for ref in changed:
            self._sizes[ref.namespace] += (ref in pods) - (ref in self._pods)
            if not self._sizes[ref.namespace]:
                del self._sizes[ref.namespace]
        names = {ref.namespace for ref in changed}.union(ref.name for ref in changed_keys(self._namespaces, namespaces))
        before = self._unread
        now = {name for name in names if self._sizes[name] and _reason(name, namespaces)}
        self._unread = frozenset((before - names) | now)
        if self._unread:
            # The namespaces whose pods get another mark; all of them if nothing is marked yet.
            other = (before ^ self._unread) if before else self._unread
            refs = {*changed, *(ref for ref in pods if ref.namespace in other)} if other else changed
            self._marked = evolve(self._marked if before else pods, self._marks(pods, refs))
        else:
            self._marked = pods
        self._pods, self._namespaces = pods, namespaces
        return self._marked

    def _marks(self, pods: Mapping[ObjectRef, Pod], refs: Collection[ObjectRef]) -> dict[ObjectRef, Pod | None]:
        found = {ref: pods.get(ref) for ref in sorted(refs)}
        return {
            ref: replace(pod, labels_unread=True) if pod is not None and ref.namespace in self._unread else pod
            for ref, pod in found.items()
        }
