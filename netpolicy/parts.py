"""The entries that each policy gives a subject, kept while label sets and policies change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from netpolicy.entries import ALL_PORTS, EntryKey, Ports, named, prefixes
from netpolicy.peers import Peers
from netpolicy.types import Direction, NamedPort, Policy, PolicyRef, Rule, RuleRef

Entries = dict[EntryKey, RuleRef]
# Of a subject only its named ports matter.
PartKey = tuple[Direction, tuple[NamedPort, ...]]


@dataclass(frozen=True, slots=True)
class Moves:
    """What changed since the last time. `stale`: the previous entries of policies to resolve again. `changed`: the
    changed keys of policies whose entries were updated."""

    stale: Mapping[PolicyRef, Mapping[PartKey, Entries]]
    changed: Mapping[PolicyRef, Mapping[PartKey, Collection[EntryKey]]]

    def concern(self, refs: Iterable[PolicyRef]) -> bool:
        return any(ref in self.stale or ref in self.changed for ref in refs)

    def keys(self, ref: PolicyRef, place: PartKey, part: Entries) -> Iterable[EntryKey]:
        """The keys of a policy's entries that may differ from the previous ones. `part`: its entries now."""
        if ref in self.stale:
            return different(self.stale[ref].get(place, {}), part)
        return self.changed.get(ref, {}).get(place, ())


class Parts:
    """The entries of policies by direction and named ports. `policies`: by namespace and name."""

    def __init__(self, policies: Mapping[str, Mapping[str, Policy]], peers: Peers) -> None:
        self._policies = policies
        self._peers = peers
        self._parts: dict[PolicyRef, dict[PartKey, Entries]] = {}

    def move(self, dirty: Iterable[PolicyRef]) -> Moves:
        """Forget the entries of the policies `dirty`, and update those of policies whose peers moved (Peers.moved)."""
        stale = {ref: self._parts.pop(ref, {}) for ref in dirty}
        moved = {ref: self._move(ref, numbers) for ref, numbers in self._peers.moved.items() if ref not in stale}
        return Moves(stale, moved)

    def keep(self, refs: Collection[PolicyRef]) -> None:
        """Forget the entries of all other policies."""
        self._parts = {ref: parts for ref, parts in self._parts.items() if ref in refs}

    def _move(self, ref: PolicyRef, numbers: set[int]) -> dict[PartKey, Collection[EntryKey]]:
        """Update the entries of a policy after its peers began or ceased to select these label sets. Returns the
        changed keys."""
        policy = self._policies[ref.namespace][ref.name]
        changed: dict[PartKey, Collection[EntryKey]] = {}
        for place, part in self._parts.get(ref, {}).items():
            direction, named_ports = place
            before = {key: rule for key, rule in part.items() if key.peer in numbers}
            after = self._entries(policy, direction, named_ports, numbers)
            changed[place] = different(before, after)
            for key in changed[place]:
                if key in after:
                    part[key] = after[key]
                else:
                    del part[key]
        return changed

    def part(self, policy: Policy, direction: Direction, named_ports: tuple[NamedPort, ...]) -> Entries:
        parts = self._parts.setdefault(policy.ref, {})
        key = (direction, named_ports)
        if key not in parts:
            parts[key] = self._entries(policy, direction, named_ports)
        return parts[key]

    def _entries(
        self,
        policy: Policy,
        direction: Direction,
        named_ports: tuple[NamedPort, ...],
        only: Collection[int] | None = None,
    ) -> Entries:
        """The entries that a policy gives a subject with these named ports; with `only`, just those for these peers."""
        found: Entries = {}
        for index, rule in enumerate(policy.rules(direction)):
            ref = policy.rule_ref(direction, index)
            for pairs in self._rule(policy.namespace, direction, rule, named_ports, only):
                keys = [EntryKey(peer, direction, *ports) for peer, ports in pairs]
                if not found:
                    found = dict.fromkeys(keys, ref)
                    continue
                for key in keys:
                    found.setdefault(key, ref)
        return found

    def _rule(
        self,
        namespace: str,
        direction: Direction,
        rule: Rule,
        named_ports: tuple[NamedPort, ...],
        only: Collection[int] | None,
    ) -> Iterator[Iterable[tuple[int, Ports]]]:
        """Pairs of peer and ports that the rule allows, for each of its ports."""
        numbers = self._peers.matched(namespace, rule.peers)
        if only is not None:
            numbers = [number for number in numbers if number in only]
        if not rule.ports:
            yield [(number, ALL_PORTS) for number in numbers]
            return
        for port in rule.ports:
            if not isinstance(port.port, str):
                found = prefixes(port)
            elif direction is Direction.INGRESS:
                found = named(port, named_ports)
            else:
                # `only` is never set for a policy with such a rule (see `resolve`).
                yield self._peers.named_egress(port, namespace, rule.peers)
                continue
            yield product(numbers, found)


def different(before: Mapping[EntryKey, RuleRef], after: Mapping[EntryKey, RuleRef]) -> dict[EntryKey, None]:
    """The keys of entries that only one of the two has, or that have different rules."""
    found = dict.fromkeys(key for key, ref in after.items() if before.get(key) != ref)
    found.update(dict.fromkeys(key for key in before if key not in after))
    return found
