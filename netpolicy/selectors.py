"""Label selectors (metav1.LabelSelector): one against one label set, and one against many through an index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from netpolicy.types import LabelSet, Operator, Peer, Requirement, Selector, namespace_labels

Namespaces = Mapping[str, Mapping[str, str]]


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether every requirement holds. NotIn and DoesNotExist hold for a key that is absent."""
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
    """Whether a peer's selectors match a pod. An ipBlock never does: it goes by address."""
    if peer.pods is None and peer.namespaces is None:
        return False
    if peer.namespaces is None:
        if pod.namespace != policy_namespace:
            return False
    elif not matches(peer.namespaces, namespace_labels(namespaces, pod.namespace)):
        return False
    return peer.pods is None or matches(peer.pods, pod.mapping)


class Index:
    """Many label sets by number, arranged so that a selector is a few set operations instead of a scan."""

    def __init__(self, groups: Mapping[int, LabelSet], namespaces: Namespaces) -> None:
        self._all = frozenset(groups)
        self._pairs: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._keys: dict[str, set[int]] = defaultdict(set)
        self._by_namespace: dict[str, set[int]] = defaultdict(set)
        for number, group in groups.items():
            self._by_namespace[group.namespace].add(number)
            for pair in group.labels:
                self._pairs[pair].add(number)
                self._keys[pair[0]].add(number)
        self._namespaces = {name: namespace_labels(namespaces, name) for name in self._by_namespace}

    def select(self, peer: Peer, policy_namespace: str) -> frozenset[int]:
        """Numbers of the label sets that the peer's selectors match."""
        if peer.pods is None and peer.namespaces is None:
            return frozenset()
        scope: set[int] = set()
        if peer.namespaces is None:
            scope |= self._by_namespace.get(policy_namespace, set())
        else:
            for name, labels in self._namespaces.items():
                if matches(peer.namespaces, labels):
                    scope |= self._by_namespace[name]
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
