"""Label selectors (metav1.LabelSelector): matches one label set, or many label sets through an index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from netpolicy.types import LabelSet, Operator, Peer, Requirement, Selector, namespace_labels

Namespaces = Mapping[str, Mapping[str, str]]
_K = TypeVar("_K")


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """True if all requirements are met. An absent key meets NotIn and DoesNotExist."""
    return all(_holds(requirement, labels) for requirement in selector.requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case Operator.IN:
            return requirement.key in labels and labels[requirement.key] in requirement.values
        case Operator.NOT_IN:
            return requirement.key not in labels or labels[requirement.key] not in requirement.values
        case Operator.EXISTS:
            return requirement.key in labels
        case Operator.DOES_NOT_EXIST:
            return requirement.key not in labels


def peer_selects(peer: Peer, policy_namespace: str, pod: LabelSet, namespaces: Namespaces) -> bool:
    """True if a peer's selectors match a pod. An ipBlock never does: it matches addresses."""
    if peer.pods is None and peer.namespaces is None:
        return False
    if peer.namespaces is None:
        if pod.namespace != policy_namespace:
            return False
    elif not matches(peer.namespaces, namespace_labels(namespaces, pod.namespace)):
        return False
    return peer.pods is None or matches(peer.pods, pod.mapping)


class Index:
    """An index of numbered label sets: a selector needs a few set operations instead of a scan.

    Label sets can be added and removed, and the labels of namespaces can change.
    """

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._keys: dict[str, set[int]] = defaultdict(set)
        self._by_namespace: dict[str, set[int]] = defaultdict(set)
        self._namespaces: dict[str, Mapping[str, str]] = {}

    def add(self, number: int, group: LabelSet) -> None:
        """Add a label set. Its namespace has only the name label until `relabel` is called."""
        self._by_namespace[group.namespace].add(number)
        self._namespaces.setdefault(group.namespace, namespace_labels({}, group.namespace))
        for pair in group.labels:
            self._pairs[pair].add(number)
            self._keys[pair[0]].add(number)

    def remove(self, number: int, group: LabelSet) -> None:
        """The reverse of `add`."""
        _discard(self._by_namespace, group.namespace, number)
        for pair in group.labels:
            _discard(self._pairs, pair, number)
            _discard(self._keys, pair[0], number)

    def relabel(self, namespace: str, labels: Mapping[str, str] | None) -> None:
        """Set the labels of a namespace; None: it was deleted."""
        # A deleted namespace that still has label sets keeps its name label.
        if labels is None and namespace not in self._by_namespace:
            self._namespaces.pop(namespace, None)
        else:
            self._namespaces[namespace] = namespace_labels({namespace: labels or {}}, namespace)

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """The labels of a namespace with which namespaceSelectors are compared."""
        return self._namespaces.get(namespace) or namespace_labels({}, namespace)

    @property
    def namespaces(self) -> Namespaces:
        """The result of `labels_of` for all namespaces that are known."""
        return self._namespaces

    def select(self, peer: Peer, policy_namespace: str) -> frozenset[int]:
        """The numbers of the label sets that the peer's selectors match."""
        if peer.pods is None and peer.namespaces is None:
            return frozenset()
        scope: set[int] = set()
        if peer.namespaces is None:
            scope |= self._by_namespace.get(policy_namespace, set())
        else:
            for name, numbers in self._by_namespace.items():
                if matches(peer.namespaces, self._namespaces[name]):
                    scope |= numbers
        for requirement in peer.pods.requirements if peer.pods else ():
            scope = self._narrow(scope, requirement)
        return frozenset(scope)

    def _narrow(self, scope: set[int], requirement: Requirement) -> set[int]:
        match requirement.operator:
            case Operator.IN:
                return scope & self._union(requirement.key, requirement.values)
            case Operator.NOT_IN:
                return scope - self._union(requirement.key, requirement.values)
            case Operator.EXISTS:
                return scope & self._keys.get(requirement.key, set())
            case Operator.DOES_NOT_EXIST:
                return scope - self._keys.get(requirement.key, set())

    def _union(self, key: str, values: Iterable[str]) -> set[int]:
        return set[int]().union(*(self._pairs.get((key, value), set()) for value in values))


def _discard(sets: dict[_K, set[int]], key: _K, number: int) -> None:
    sets[key].discard(number)
    if not sets[key]:
        del sets[key]
