"""Which label sets and regions the peers of rules match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from netpolicy.entries import ANY, Ports, named
from netpolicy.regions import Regions
from netpolicy.selectors import Index, Namespaces, matches, peer_selects
from netpolicy.types import LabelSet, Peer, PolicyRef, PortRule


@dataclass(slots=True)
class _Selection:
    """The label sets that a list of peers selects, and the policies with such rules."""

    namespace: str
    peers: tuple[Peer, ...]
    numbers: set[int] = field(default_factory=set)
    users: set[PolicyRef] = field(default_factory=set)

    def selects(self, group: LabelSet, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
        return any(peer_selects(peer, self.namespace, group, namespaces) for peer in self.peers)


class Peers:
    """Label sets by number, namespaces and regions, and what the peers of policies select among them. `moved`: for
    each policy the label sets that its peers began or ceased to select; the caller clears it."""

    def __init__(self) -> None:
        self.groups: dict[int, LabelSet] = {}
        self.regions = Regions()
        self.moved: dict[PolicyRef, set[int]] = {}
        self._index = Index()
        self._selections: dict[tuple[str, tuple[Peer, ...]], _Selection] = {}

    @property
    def namespaces(self) -> Namespaces:
        """The labels of the namespaces that are known."""
        return self._index.namespaces

    def remove(self, number: int) -> LabelSet:
        """Remove a label set. Returns it."""
        group = self.groups.pop(number)
        self._index.remove(number, group)
        for selection in self._selections.values():
            if number in selection.numbers:
                selection.numbers.discard(number)
                self._move(selection, {number})
        return group

    def add(self, number: int, group: LabelSet) -> None:
        self.groups[number] = group
        self._index.add(number, group)
        for selection in self._selections.values():
            if selection.selects(group, self._index.namespaces):
                selection.numbers.add(number)
                self._move(selection, {number})

    def relabel(self, name: str, labels: Mapping[str, str] | None) -> None:
        """The new labels of a namespace; None for a deleted one."""
        before = self._index.labels_of(name)
        self._index.relabel(name, labels)
        after = self._index.labels_of(name)
        for selection in self._selections.values():
            # Other label sets are selected only if the result of a namespaceSelector changes.
            if any(
                peer.namespaces is not None and matches(peer.namespaces, before) != matches(peer.namespaces, after)
                for peer in selection.peers
            ):
                self._select_again(selection)

    def join(self, ref: PolicyRef, peers: tuple[Peer, ...]) -> None:
        """A policy has a rule with these peers."""
        key = (ref.namespace, peers)
        selection = self._selections.get(key)
        if selection is None:
            selection = self._selections[key] = _Selection(*key)
            self._select_again(selection)
        selection.users.add(ref)

    def leave(self, ref: PolicyRef, peers: tuple[Peer, ...]) -> None:
        selection = self._selections[ref.namespace, peers]
        selection.users.discard(ref)
        if not selection.users:
            del self._selections[ref.namespace, peers]

    def selected(self, namespace: str, peers: tuple[Peer, ...]) -> set[int]:
        """The numbers of the label sets that these peers of a rule select. Do not change the set."""
        return self._selections[namespace, peers].numbers

    def matched(self, namespace: str, peers: tuple[Peer, ...]) -> list[int]:
        """The numbers of the label sets and regions that peers match; only ANY if there are no peers."""
        if not peers:
            return [ANY]
        found = set(self.selected(namespace, peers))
        for peer in peers:
            if peer.block is not None:
                found.update(self.regions.numbers[region] for region in self.regions.inside(peer.block))
        return sorted(found)

    def named_egress(self, port: PortRule, namespace: str, peers: tuple[Peer, ...]) -> Iterator[tuple[int, Ports]]:
        """A named port of an egress rule is looked up in each destination pod; addresses outside the cluster have no
        named ports."""
        everyone: Iterable[int] = sorted(self.groups)
        for number in everyone if not peers else self.matched(namespace, peers):
            if number in self.groups:
                yield from ((number, prefix) for prefix in named(port, self.groups[number].named_ports))
        for block in (peer.block for peer in peers if peer.block is not None):
            for region in self.regions.inside(block):
                pod = self.regions.pods.get(region.prefix)
                if pod is not None:
                    yield from ((self.regions.numbers[region], prefix) for prefix in named(port, pod.named_ports))

    def _select_again(self, selection: _Selection) -> None:
        numbers = {number for peer in selection.peers for number in self._index.select(peer, selection.namespace)}
        moved = numbers ^ selection.numbers
        if moved:
            selection.numbers = numbers
            self._move(selection, moved)

    def _move(self, selection: _Selection, numbers: set[int]) -> None:
        for ref in selection.users:
            self.moved.setdefault(ref, set()).update(numbers)
