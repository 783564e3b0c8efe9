"""Which pods have the same identity, and the number of each identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from netpolicy.holders import holders
from netpolicy.regions import Prefix, Region, partition
from netpolicy.types import LabelSet, NamedPort, NetworkPolicy, Peer, Policy
from nodenet.abi import U32, LpmKey
from nodenet.compile.ids import IdentityKey, Ids
from nodenet.model import ObjectRef, Pod

# Labels whose values differ for each pod or each rollout. They are part of a pod's identity only if a policy uses them;
# otherwise each pod would have its own identity.
HIGH_CARDINALITY_LABELS = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
    }
)


@dataclass(slots=True)
class IdentityChanges:
    """What a change of pods changes: the identity of pods (None: it has none), and the label sets that came and went,
    by number."""

    identities: dict[ObjectRef, int | None] = field(default_factory=dict)
    groups: dict[int, LabelSet] = field(default_factory=dict)
    gone: dict[int, None] = field(default_factory=dict)


class PodIdentities:
    """The label set of each pod that has an identity, and the number of each label set, while pods change.
    `distinguishing`: the high-cardinality labels that policies use."""

    def __init__(self, ids: Ids, distinguishing: tuple[str, ...]) -> None:
        self.label_sets: dict[ObjectRef, LabelSet] = {}
        self.numbers: dict[LabelSet, int] = {}
        self.distinguishing = distinguishing
        self._ids = ids
        self._without = HIGH_CARDINALITY_LABELS.difference(distinguishing)
        # The number of pods with each label set.
        self._users: Counter[LabelSet] = Counter()

    def change(
        self, pods: Mapping[ObjectRef, Pod], concerned: Iterable[ObjectRef], local: set[ObjectRef]
    ) -> IdentityChanges:
        """Update label sets and identities. New label sets get their numbers in sorted order, so that two with the same
        hash get the same numbers on every node."""
        changes = IdentityChanges()
        left: set[LabelSet] = set()
        new: dict[ObjectRef, LabelSet] = {}
        for ref in concerned:
            pod, old = pods.get(ref), self.label_sets.pop(ref, None)
            if pod is not None and _has_identity(pod, local):
                new[ref] = label_set(pod, self._without)
            elif old is not None:
                changes.identities[ref] = None
            if old is not None:
                self._users[old] -= 1
                left.add(old)
        self.label_sets.update(new)
        self._users.update(new.values())
        for labels in sorted({*new.values()} - self.numbers.keys(), key=_order):
            number = self._ids.identities.number(IdentityKey(labels, self.distinguishing))
            self.numbers[labels] = number
            changes.groups[number] = labels
        for labels in left:
            if not self._users[labels]:
                del self._users[labels]
                number = self.numbers.pop(labels)
                self._ids.identities.retire(IdentityKey(labels, self.distinguishing))
                changes.gone[number] = None
        changes.identities.update({ref: self.numbers[labels] for ref, labels in new.items()})
        return changes

    def keep(self) -> None:
        """Retire numbers that were restored or left by a failed run and are not used."""
        self._ids.identities.keep({IdentityKey(labels, self.distinguishing) for labels in self.numbers})


def _has_identity(pod: Pod, local: Collection[ObjectRef]) -> bool:
    """hostNetwork pods have the identity of their node. A finished pod has one only while it has an endpoint here. A
    pod with an unreadable label has none: no selector matches it, and its endpoint is isolated."""
    return not pod.host_network and not pod.labels_unread and (not pod.finished or pod.ref in local)


def identities(
    pods: Mapping[ObjectRef, Pod], policies: Iterable[Policy], local: Collection[ObjectRef] = ()
) -> dict[ObjectRef, LabelSet]:
    """The label set of each pod that has an identity."""
    without = HIGH_CARDINALITY_LABELS.difference(distinguishing_labels(policies))
    return {ref: label_set(pod, without) for ref, pod in pods.items() if _has_identity(pod, local)}


def label_set(pod: Pod, without: Collection[str] = HIGH_CARDINALITY_LABELS) -> LabelSet:
    """The parts of a pod that policies can select, without the labels in `without`."""
    labels = tuple(pod.labels.items())
    if not pod.labels.keys().isdisjoint(without):
        labels = tuple((key, value) for key, value in labels if key not in without)
    return _label_set(pod.ref.namespace, labels, pod.named_ports)


@lru_cache(maxsize=1 << 14)
def _label_set(namespace: str, labels: tuple[tuple[str, str], ...], ports: tuple[NamedPort, ...]) -> LabelSet:
    """Many pods have the same labels. They share one object, so that it is sorted and hashed once."""
    return LabelSet.of(namespace, dict(labels), ports)


def restore(
    ids: Ids,
    pods: Mapping[ObjectRef, Pod],
    policies: Collection[Policy],
    ipcache: Mapping[LpmKey, U32],
    cidr: Mapping[LpmKey, U32],
) -> None:
    """Take over the numbers that pinned nn_ipcache and nn_cidr hold, before the first compile of a new process.

    Numbers are hashes, so most would be the same anyway. This restores the few that differ because of a collision.
    """
    held = {key.addr: value.value for key, value in ipcache.items()}
    by_pod, distinguishing = identities(pods, policies), distinguishing_labels(policies)
    whose = holders(pods.values())
    ids.identities.restore(
        (IdentityKey(labels, distinguishing), held[ip])
        for ref, labels in sorted(by_pod.items(), key=lambda item: item[0])
        for ip in pods[ref].ips
        if ip in held and whose.get(ip) is pods[ref]
    )
    ids.regions.restore(_held_regions(cidr))


def _held_regions(cidr: Mapping[LpmKey, U32]) -> list[tuple[Region, int]]:
    numbers = {Prefix(int.from_bytes(_mapped(key), "big"), key.prefixlen): value.value for key, value in cidr.items()}
    return [(region, numbers[region.prefix]) for region in partition(numbers) if region.prefix in numbers]


def _mapped(key: LpmKey) -> bytes:
    return key.pack()[4:]


def distinguishing_labels(policies: Iterable[Policy]) -> tuple[str, ...]:
    """The high-cardinality labels that policies use. They are part of identities."""
    keys: set[str] = set()
    for policy in policies:
        keys |= policy.selector.keys if isinstance(policy, NetworkPolicy) else _keys_of(policy.subject)
        for rule in (*policy.ingress, *policy.egress):
            for peer in rule.peers:
                keys |= _keys_of(peer)
    return tuple(sorted(keys & HIGH_CARDINALITY_LABELS))


def _keys_of(peer: Peer) -> frozenset[str]:
    """The labels of pods that a peer compares."""
    return peer.pods.keys if peer.pods is not None else frozenset()


def _order(labels: LabelSet) -> tuple[object, ...]:
    return (labels.namespace, labels.labels, labels.named_ports)
