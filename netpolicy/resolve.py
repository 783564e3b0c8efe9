"""Resolves policies to entries: which peers may communicate with a subject, by number, protocol and port prefix.

The peer of an entry is the number of a label set or of a region of addresses, or ANY. A flow of an isolated subject is
allowed if an entry matches for its peer's label set, for the region of its peer's address, or for ANY. The rules of the
other tiers have entries of their own (netpolicy.tiers).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from netpolicy.demands import Demand, DemandKey, Sizes
from netpolicy.entries import EntryKey
from netpolicy.parts import Entries, Moves, Parts
from netpolicy.peers import Peers
from netpolicy.regions import Prefix, Regions
from netpolicy.selectors import matches, peer_selects
from netpolicy.tiers import NO_TIERS, Layer, ResolvedKey, ResolvedTiers, combined, crowded, precedences
from netpolicy.types import (
    ClusterPolicy,
    Direction,
    IPBlock,
    LabelSet,
    NetworkPolicy,
    Peer,
    Policy,
    PolicyRef,
    RuleRef,
    Tier,
)


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


class Resolver:
    """Resolves policies for subjects from label sets, namespaces and regions. All inputs may change.

    Call the `change_` methods, then `demands`, then `resolve`. A ResolvedPolicy is the same object as before if no
    change affects it. `demands` makes no entry: the caller decides what there is room for before the memory is used.
    """

    def __init__(self) -> None:
        self._peers = Peers()
        # By namespace and name; ClusterNetworkPolicies have the namespace "".
        self._policies: dict[str, dict[str, Policy]] = {}
        self._sizes = Sizes(self._policies, self._peers)
        self._parts = Parts(self._policies, self._peers)
        # Policies with an egress rule with a named port: its number depends on the destination pod.
        self._name_ports: set[PolicyRef] = set()
        self._blocks: dict[PolicyRef, tuple[IPBlock, ...]] = {}
        # Changes since the last `resolve`: policies whose entries may differ, and namespaces whose policies select
        # other pods. Peers.moved has policies whose peers select other label sets. The namespace "" means all subjects.
        self._dirty: set[PolicyRef] = set()
        self._reselected: set[str] = set()
        self._matching: dict[LabelSet, tuple[PolicyRef, ...]] = {}
        self._selecting: dict[LabelSet, tuple[PolicyRef, ...]] = {}
        self._demands: dict[DemandKey, Demand] = {}
        self._resolved: dict[DemandKey, ResolvedPolicy] = {}
        self._tiers: dict[ResolvedKey, ResolvedTiers] = {}

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
            if self._policies.get(""):
                self._reselected.add(name)

    def change_policies(self, changed: Mapping[PolicyRef, Policy | None]) -> None:
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
            if _selection(old) != _selection(policy):
                self._reselected.add(ref.namespace)

    def _note_parts(self, policy: Policy) -> None:
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

    def demands(self, subjects: Sequence[LabelSet]) -> tuple[list[Demand], list[Demand]]:
        """How many entries each of these label sets needs: of NetworkPolicies, and of ClusterNetworkPolicies. The same
        object for label sets that need the same ones."""
        touched = self._dirty | self._peers.moved.keys()
        self._sizes.forget(touched)
        known = self._demands
        self._demands = {}
        own = {subject: self._policies_of(subject) for subject in subjects}
        wide = {subject: self._cluster_policies_of(subject) for subject in subjects} if self._policies.get("") else {}
        self._matching, self._selecting = own, wide
        self._reselected.clear()
        keys = [DemandKey(own[subject], subject.named_ports) for subject in subjects]
        wide_keys = [DemandKey(wide.get(subject, ()), subject.named_ports) for subject in subjects]
        return [self._demand(k, known, touched) for k in keys], [self._demand(k, known, touched) for k in wide_keys]

    def _demand(self, key: DemandKey, known: Mapping[DemandKey, Demand], touched: Collection[PolicyRef]) -> Demand:
        demand = self._demands.get(key)
        if demand is None:
            demand = known.get(key)
            if demand is None or any(ref in touched for ref in key.policies):
                demand = self._sizes.demand(key)
            self._demands[key] = demand
        return demand

    def crowded(self, key: DemandKey) -> frozenset[PolicyRef]:
        """The ClusterNetworkPolicies that have no place among those of their priority."""
        return crowded(self._cluster_policies(key)) if key.policies else frozenset()

    def resolve(
        self,
        demands: Sequence[Demand],
        tiers: Sequence[Demand],
        closed: Mapping[DemandKey, frozenset[PolicyRef]] | None = None,
    ) -> tuple[list[ResolvedPolicy], list[ResolvedTiers]]:
        """The resolved policy of each result of the last `demands`. Results for other subjects are removed from the
        cache. `closed`: the policies whose rules are left out. No entry is made for them, so they need no memory."""
        closed = closed or {}
        # A named port in an egress rule depends on label sets that no peer needs to select, so resolve these policies
        # completely. A policy that is closed may have grown too large to follow.
        self._dirty |= self._peers.moved.keys() & self._name_ports.union(*closed.values())
        moves = self._parts.move(self._dirty)
        resolved: dict[DemandKey, ResolvedPolicy] = {}
        answers = []
        for demand in demands:
            key = demand.key
            if key not in resolved:
                old, without = self._resolved.get(key), closed.get(key, frozenset())
                if old is None or old.closed != without:
                    resolved[key] = self._resolve(key, without)
                elif moves.concern(key.policies):
                    resolved[key] = self._resolve_again(key, old, moves)
                else:
                    resolved[key] = old
            answers.append(resolved[key])
        wide = self._resolve_tiers(answers, tiers, closed, moves)
        # Drop the references to older results, so that they do not form an endless chain.
        for answer in (*self._resolved.values(), *self._tiers.values()):
            object.__setattr__(answer, "since", None)
        self._resolved = resolved
        self._tiers = {ResolvedKey(demand.key, one.opened): one for demand, one in zip(tiers, wide, strict=True)}
        self._dirty.clear()
        self._peers.moved.clear()
        if closed:
            every: tuple[ResolvedPolicy | ResolvedTiers, ...] = (*resolved.values(), *wide)
            self._parts.keep({ref for answer in every for ref in answer.policies if ref not in answer.closed})
        return answers, wide

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
        """The NetworkPolicies that select a subject."""
        known = None if subject.namespace in self._reselected else self._matching.get(subject)
        if known is not None:
            return known
        policies = (p for p in self._policies.get(subject.namespace, {}).values() if isinstance(p, NetworkPolicy))
        return tuple(sorted(p.ref for p in policies if matches(p.selector, subject.mapping)))

    def _cluster_policies_of(self, subject: LabelSet) -> tuple[PolicyRef, ...]:
        """The ClusterNetworkPolicies that select a subject, the strongest first."""
        known = None if {"", subject.namespace} & self._reselected else self._selecting.get(subject)
        if known is not None:
            return known
        policies = (p for p in self._policies[""].values() if isinstance(p, ClusterPolicy))
        found = [p for p in policies if peer_selects(p.subject, "", subject, self._peers.namespaces)]
        return tuple(p.ref for p in sorted(found, key=lambda p: (p.tier, *p.strength)))

    def _resolve(self, key: DemandKey, closed: frozenset[PolicyRef]) -> ResolvedPolicy:
        policies = self._network_policies(key)
        opening = [policy for policy in policies if policy.ref not in closed]
        entries: dict[EntryKey, RuleRef] = {}
        for direction in Direction:
            # An entry names its first rule, so write the last policy first.
            for policy in reversed(opening):
                entries.update(self._parts.part(policy, direction, key.named_ports))
        return ResolvedPolicy(key.policies, _isolated(policies), entries, closed)

    def _resolve_again(
        self,
        key: DemandKey,
        old: ResolvedPolicy,
        moves: Moves,
    ) -> ResolvedPolicy:
        """As `_resolve`, for the same policies, but checks only changed entries."""
        policies = self._network_policies(key)
        opening = [policy for policy in policies if policy.ref not in old.closed]
        keys: dict[EntryKey, None] = {}
        parts: dict[Direction, list[Entries]] = {}
        for direction in Direction:
            place = (direction, key.named_ports)
            parts[direction] = [self._parts.part(policy, direction, key.named_ports) for policy in opening]
            for policy, part in zip(opening, parts[direction], strict=True):
                keys.update(dict.fromkeys(moves.keys(policy.ref, place, part)))
        entries = {**old.entries}
        for entry in keys:
            # An entry names the first policy that gives it.
            ref = next((part[entry] for part in parts[entry.direction] if entry in part), None)
            if ref is None:
                entries.pop(entry, None)
            else:
                entries[entry] = ref
        return ResolvedPolicy(old.policies, _isolated(policies), entries, old.closed, old, tuple(keys))

    def _network_policies(self, key: DemandKey) -> list[NetworkPolicy]:
        found = (self._policies[ref.namespace][ref.name] for ref in key.policies)
        return [policy for policy in found if isinstance(policy, NetworkPolicy)]

    def _cluster_policies(self, key: DemandKey) -> list[ClusterPolicy]:
        found = (self._policies[ref.namespace][ref.name] for ref in key.policies)
        return [policy for policy in found if isinstance(policy, ClusterPolicy)]

    def _resolve_tiers(
        self,
        own: Iterable[ResolvedPolicy],
        demands: Iterable[Demand],
        closed: Mapping[DemandKey, frozenset[PolicyRef]],
        moves: Moves,
    ) -> list[ResolvedTiers]:
        """`own`: the answers of the NetworkPolicies for the same subjects."""
        found: dict[ResolvedKey, ResolvedTiers] = {}
        answers = []
        for answer, demand in zip(own, demands, strict=True):
            if not demand.key.policies:
                answers.append(NO_TIERS)
                continue
            key = ResolvedKey(demand.key, frozenset(d for d in Direction if d not in answer.isolated))
            if key not in found:
                found[key] = self._tiers_of(key, closed.get(demand.key, frozenset()), moves)
            answers.append(found[key])
        return answers

    def _tiers_of(self, key: ResolvedKey, closed: frozenset[PolicyRef], moves: Moves) -> ResolvedTiers:
        refs, named_ports = key.demand
        old = self._tiers.get(key)
        same = old is not None and old.closed == closed
        if same and old is not None and not moves.concern(refs):
            return old
        policies = self._cluster_policies(key.demand)
        layers = []
        for policy, precedence in zip(policies, precedences(policies), strict=True):
            is_open = policy.ref not in closed
            parts = {d: self._parts.part(policy, d, named_ports) for d in Direction} if is_open else None
            layers.append(Layer(policy, precedence, parts))
        asked = _asked(policies, key.opened)
        if not same or old is None or any(ref in moves.stale for ref in refs):
            return ResolvedTiers(refs, asked, combined(layers, key.opened), closed, key.opened)
        # Only entries for these peers may differ.
        numbers = {
            entry.peer
            for layer in layers
            for direction, part in (layer.parts or {}).items()
            for entry in moves.keys(layer.policy.ref, (direction, named_ports), dict(part))
        }
        after = combined(layers, key.opened, numbers)
        changed = {**dict.fromkeys(place for place in old.entries if place.entry.peer in numbers), **after}
        entries = {place: rule for place, rule in old.entries.items() if place not in changed} | after
        return ResolvedTiers(refs, asked, entries, closed, key.opened, old, tuple(changed))


def _asked(policies: Iterable[ClusterPolicy], opened: Collection[Direction]) -> frozenset[Direction]:
    """The directions in which a tier has rules."""
    return frozenset(d for p in policies for d in p.directions if p.tier is Tier.ADMIN or d in opened)


def _selection(policy: Policy | None) -> object:
    """What decides which pods a policy selects, and its place among the others."""
    if isinstance(policy, ClusterPolicy):
        return policy.subject, policy.tier, policy.strength
    return None if policy is None else policy.selector


def _isolated(policies: Iterable[NetworkPolicy]) -> dict[Direction, tuple[PolicyRef, ...]]:
    found = {d: tuple(policy.ref for policy in policies if d in policy.directions) for d in Direction}
    return {direction: refs for direction, refs in found.items() if refs}


def _peer_lists(policy: Policy | None) -> set[tuple[Peer, ...]]:
    """The peer lists of a policy's rules, without empty ones, which mean all peers."""
    if policy is None:
        return set()
    return {rule.peers for direction in policy.directions for rule in policy.rules(direction) if rule.peers}
