"""Resolves policies to entries: which peers may communicate with a subject, by number, protocol and port prefix.

The peer of an entry is the number of a label set or of a region of addresses, or ANY. A flow of an isolated subject is
allowed if an entry matches for its peer's label set, for the region of its peer's address, or for ANY.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from netpolicy.demands import Demand, DemandKey, Sizes
from netpolicy.entries import ALL_PORTS, EntryKey, Ports, named, prefixes
from netpolicy.peers import Peers
from netpolicy.regions import Prefix, Regions
from netpolicy.selectors import matches
from netpolicy.types import Direction, IPBlock, LabelSet, NamedPort, NetworkPolicy, Peer, PolicyRef, Rule, RuleRef


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """The resolved policy of one subject. A direction without isolating policies allows everything.

    If several rules give the same entry, it names the first one, in the order of policy name and index. `policies` are
    those that select the subject. `changed`: the keys whose entries differ from those of `since`, the previous result;
    without `since` all entries may be new. Policies in `closed` isolate, and none of their rules is among the entries.
    """

    policies: tuple[PolicyRef, ...]
    isolated: Mapping[Direction, tuple[PolicyRef, ...]]
    entries: Mapping[EntryKey, RuleRef]
    closed: frozenset[PolicyRef] = frozenset()
    since: ResolvedPolicy | None = field(default=None, compare=False, repr=False)
    changed: Collection[EntryKey] = field(default=(), compare=False, repr=False)


_Entries = dict[EntryKey, RuleRef]
_PartKey = tuple[Direction, tuple[NamedPort, ...]]


class Resolver:
    """Resolves policies for subjects from label sets, namespaces and regions. All inputs may change.

    Call the `change_` methods, then `demands`, then `resolve`. A ResolvedPolicy is the same object as before if no
    change affects it. `demands` makes no entry: the caller decides what there is room for before the memory is used.
    """

    def __init__(self) -> None:
        self._peers = Peers()
        self._policies: dict[str, dict[str, NetworkPolicy]] = {}
        self._sizes = Sizes(self._policies, self._peers)
        # Policies with an egress rule with a named port: its number depends on the destination pod.
        self._name_ports: set[PolicyRef] = set()
        self._blocks: dict[PolicyRef, tuple[IPBlock, ...]] = {}
        # The entries that each policy gives a subject; of the subject only its named ports matter.
        self._parts: dict[PolicyRef, dict[_PartKey, _Entries]] = {}
        # Changes since the last `resolve`: policies whose entries may differ, and namespaces whose policies select
        # other pods. Peers.moved has policies whose peers select other label sets.
        self._dirty: set[PolicyRef] = set()
        self._reselected: set[str] = set()
        self._matching: dict[LabelSet, tuple[PolicyRef, ...]] = {}
        self._demands: dict[DemandKey, Demand] = {}
        self._resolved: dict[DemandKey, ResolvedPolicy] = {}

    def change_groups(self, added: Mapping[int, LabelSet], gone: Iterable[int]) -> None:
        """Add and remove label sets by number. A number of `gone` may appear in `added` with another meaning."""
        for number in gone:
            self._named_ports_of(self._peers.remove(number))
        for number, group in added.items():
            self._peers.add(number, group)
            self._named_ports_of(group)

    def _named_ports_of(self, group: LabelSet) -> None:
        if group.named_ports:
            self._dirty |= self._name_ports

    def change_namespaces(self, changed: Mapping[str, Mapping[str, str] | None]) -> None:
        """The new labels of namespaces; None for a deleted one."""
        for name, labels in changed.items():
            self._peers.relabel(name, labels)

    def change_policies(self, changed: Mapping[PolicyRef, NetworkPolicy | None]) -> None:
        """New versions of policies; None for a deleted one."""
        for ref, policy in changed.items():
            namespace = self._policies.setdefault(ref.namespace, {})
            old = namespace.pop(ref.name, None)
            if policy is not None:
                namespace[ref.name] = policy
            self._blocks.pop(ref, None)
            self._name_ports.discard(ref)
            if policy is not None:
                self._note_parts(policy)
            before, after = _peer_lists(old), _peer_lists(policy)
            for peers in after - before:
                self._peers.join(ref, peers)
            for peers in before - after:
                self._peers.leave(ref, peers)
            self._dirty.add(ref)
            if old is None or policy is None or old.selector != policy.selector:
                self._reselected.add(ref.namespace)

    def _note_parts(self, policy: NetworkPolicy) -> None:
        rules = [(direction, rule) for direction in policy.directions for rule in policy.rules(direction)]
        blocks = tuple(peer.block for _, rule in rules for peer in rule.peers if peer.block is not None)
        if blocks:
            self._blocks[policy.ref] = blocks
        if any(d is Direction.EGRESS and isinstance(port.port, str) for d, rule in rules for port in rule.ports):
            self._name_ports.add(policy.ref)

    def change_regions(self, regions: Regions, changed: Collection[Prefix]) -> None:
        """Set the numbered regions of all policies' blocks. `changed`: prefixes whose region was added, removed or
        replaced."""
        self._peers.regions = regions
        for ref, blocks in self._blocks.items():
            if any(Prefix.of(block.cidr).covers(prefix) for block in blocks for prefix in changed):
                self._dirty.add(ref)

    @property
    def pending(self) -> bool:
        """Whether a change since the last `resolve` may concern a subject."""
        return bool(self._dirty or self._peers.moved or self._reselected)

    def demands(self, subjects: Iterable[LabelSet]) -> list[Demand]:
        """How many entries each of these label sets needs. The same object for label sets that need the same ones."""
        touched = self._dirty | self._peers.moved.keys()
        self._sizes.forget(touched)
        matching: dict[LabelSet, tuple[PolicyRef, ...]] = {}
        demands: dict[DemandKey, Demand] = {}
        answers = []
        for subject in subjects:
            known = None if subject.namespace in self._reselected else self._matching.get(subject)
            refs = matching[subject] = self._policies_of(subject) if known is None else known
            key = DemandKey(refs, subject.named_ports)
            demand = demands.get(key)
            if demand is None:
                demand = self._demands.get(key)
                if demand is None or any(ref in touched for ref in refs):
                    demand = self._sizes.demand(key)
                demands[key] = demand
            answers.append(demand)
        self._matching, self._demands = matching, demands
        self._reselected.clear()
        return answers

    def resolve(
        self, demands: Iterable[Demand], closed: Mapping[DemandKey, frozenset[PolicyRef]] | None = None
    ) -> list[ResolvedPolicy]:
        """The resolved policy of each result of the last `demands`. Results for other subjects are removed from the
        cache. `closed`: the policies whose rules are left out. No entry is made for them, so they need no memory."""
        closed = closed or {}
        # A named port in an egress rule depends on label sets that no peer needs to select, so resolve these policies
        # completely. A policy that is closed may have grown too large to follow.
        self._dirty |= self._peers.moved.keys() & self._name_ports.union(*closed.values())
        stale = {ref: self._parts.pop(ref, {}) for ref in self._dirty}
        changed = {
            ref: self._move_parts(ref, numbers) for ref, numbers in self._peers.moved.items() if ref not in stale
        }
        resolved: dict[DemandKey, ResolvedPolicy] = {}
        answers = []
        for demand in demands:
            key = demand.key
            if key not in resolved:
                old, without = self._resolved.get(key), closed.get(key, frozenset())
                if old is None or old.closed != without:
                    resolved[key] = self._resolve(key, without)
                elif any(ref in stale or ref in changed for ref in key.policies):
                    resolved[key] = self._resolve_again(key, old, stale, changed)
                else:
                    resolved[key] = old
            answers.append(resolved[key])
        # Drop the references to older results, so that they do not form an endless chain.
        for answer in self._resolved.values():
            object.__setattr__(answer, "since", None)
        self._resolved = resolved
        self._dirty.clear()
        self._peers.moved.clear()
        if closed:
            used = {ref for answer in resolved.values() for ref in answer.policies if ref not in answer.closed}
            self._parts = {ref: parts for ref, parts in self._parts.items() if ref in used}
        return answers

    def imagined(self, demand: Demand, regions: Regions, closed: Collection[PolicyRef]) -> Demand:
        """What a demand would be with these regions and without the rules of policies in `closed`."""
        sizes = tuple(
            0
            if ref in closed
            else self._sizes.sized(ref, demand.key.named_ports, regions)
            if ref in self._blocks
            else size
            for ref, size in zip(demand.key.policies, demand.sizes, strict=True)
        )
        return Demand(demand.key, sizes, sum(sizes))

    def _policies_of(self, subject: LabelSet) -> tuple[PolicyRef, ...]:
        policies = self._policies.get(subject.namespace, {})
        return tuple(sorted(p.ref for p in policies.values() if matches(p.selector, subject.mapping)))

    def _resolve(self, key: DemandKey, closed: frozenset[PolicyRef]) -> ResolvedPolicy:
        policies = [self._policies[ref.namespace][ref.name] for ref in key.policies]
        opening = [policy for policy in policies if policy.ref not in closed]
        entries: dict[EntryKey, RuleRef] = {}
        for direction in Direction:
            # An entry names its first rule, so write the last policy first.
            for policy in reversed(opening):
                entries.update(self._part(policy, direction, key.named_ports))
        return ResolvedPolicy(key.policies, _isolated(policies), entries, closed)

    def _resolve_again(
        self,
        key: DemandKey,
        old: ResolvedPolicy,
        stale: Mapping[PolicyRef, Mapping[_PartKey, _Entries]],
        changed: Mapping[PolicyRef, Mapping[_PartKey, Collection[EntryKey]]],
    ) -> ResolvedPolicy:
        """As `_resolve`, for the same policies, but checks only changed entries. `stale`: the previous entries of
        policies to resolve again; `changed`: the changed keys of the others."""
        policies = [self._policies[ref.namespace][ref.name] for ref in old.policies]
        opening = [policy for policy in policies if policy.ref not in old.closed]
        keys: dict[EntryKey, None] = {}
        parts: dict[Direction, list[_Entries]] = {}
        for direction in Direction:
            place = (direction, key.named_ports)
            parts[direction] = [self._part(policy, direction, key.named_ports) for policy in opening]
            for policy, part in zip(opening, parts[direction], strict=True):
                if policy.ref in stale:
                    keys.update(_different(stale[policy.ref].get(place, {}), part))
                elif policy.ref in changed:
                    keys.update(dict.fromkeys(changed[policy.ref].get(place, ())))
        entries = {**old.entries}
        for entry in keys:
            # An entry names the first policy that gives it.
            ref = next((part[entry] for part in parts[entry.direction] if entry in part), None)
            if ref is None:
                entries.pop(entry, None)
            else:
                entries[entry] = ref
        return ResolvedPolicy(old.policies, _isolated(policies), entries, old.closed, old, tuple(keys))

    def _move_parts(self, ref: PolicyRef, numbers: set[int]) -> dict[_PartKey, Collection[EntryKey]]:
        """Update the entries of a policy after its peers began or ceased to select these label sets. Returns the
        changed keys."""
        policy = self._policies[ref.namespace][ref.name]
        changed: dict[_PartKey, Collection[EntryKey]] = {}
        for place, part in self._parts.get(ref, {}).items():
            direction, named_ports = place
            before = {key: rule for key, rule in part.items() if key.peer in numbers}
            after = self._entries(policy, direction, named_ports, numbers)
            changed[place] = _different(before, after)
            for key in changed[place]:
                if key in after:
                    part[key] = after[key]
                else:
                    del part[key]
        return changed

    def _part(self, policy: NetworkPolicy, direction: Direction, named_ports: tuple[NamedPort, ...]) -> _Entries:
        parts = self._parts.setdefault(policy.ref, {})
        key = (direction, named_ports)
        if key not in parts:
            parts[key] = self._entries(policy, direction, named_ports)
        return parts[key]

    def _entries(
        self,
        policy: NetworkPolicy,
        direction: Direction,
        named_ports: tuple[NamedPort, ...],
        only: Collection[int] | None = None,
    ) -> _Entries:
        """The entries that a policy gives a subject with these named ports; with `only`, just those for these peers."""
        found: _Entries = {}
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


def _isolated(policies: Iterable[NetworkPolicy]) -> dict[Direction, tuple[PolicyRef, ...]]:
    found = {d: tuple(policy.ref for policy in policies if d in policy.directions) for d in Direction}
    return {direction: refs for direction, refs in found.items() if refs}


def _different(before: _Entries, after: _Entries) -> dict[EntryKey, None]:
    """The keys of entries that only one of the two has, or that have different rules."""
    found = dict.fromkeys(key for key, ref in after.items() if before.get(key) != ref)
    found.update(dict.fromkeys(key for key in before if key not in after))
    return found


def _peer_lists(policy: NetworkPolicy | None) -> set[tuple[Peer, ...]]:
    """The peer lists of a policy's rules, without empty ones, which mean all peers."""
    if policy is None:
        return set()
    return {rule.peers for direction in policy.directions for rule in policy.rules(direction) if rule.peers}
