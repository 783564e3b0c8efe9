"""The state of the policies' compilation, which one compilation hands on to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from netpolicy.demands import Demand
from netpolicy.holders import holders
from netpolicy.regions import Blocks, Regions
from netpolicy.resolve import Resolver
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, Policy, PolicyRef, RuleRef
from nodenet.abi import U32, LpmKey
from nodenet.compile.cuts import Cut, Named
from nodenet.compile.identities import PodIdentities
from nodenet.compile.ids import Ids
from nodenet.compile.policy_set import PolicySet
from nodenet.compile.policy_tables import DIRECTIONS, Changes, PolicyTables, flags_of
from nodenet.compile.rule_values import NOTHING, Resolved, RuleValues
from nodenet.compile.shares import Closed, LeftOut, Room, share_entries
from nodenet.evolved import changed_keys, evolve
from nodenet.model import Labels, ObjectRef, Pod

# Of NetworkPolicies, and of ClusterNetworkPolicies.
Demands = tuple[list[Demand], list[Demand]]


class PolicyState:
    """The state of the last compilation. The next one modifies it; if that fails, it is inconsistent and is
    discarded."""

    def __init__(self, ids: Ids, distinguishing: tuple[str, ...], room: Room, enforce: bool) -> None:
        self._ids = ids
        self.room = room
        self.enforce = enforce
        self.policies = PolicySet()
        self.tables = PolicyTables({}, {}, {}, {}, {}, {}, {}, {})
        self.identities = PodIdentities(ids, distinguishing)
        self._pods: Mapping[ObjectRef, Pod] = {}
        self._namespaces: Mapping[str, Labels] = {}
        self._local: Collection[ObjectRef] = ()
        # The blocks of all policies, and the policies that are left out because there are too many blocks.
        self._blocks = Blocks()
        self._left_out_blocks: tuple[LeftOut, ...] = ()
        # Fewer prefixes are in force than there is room for (nodenet.compile.cuts).
        self._is_tight = False
        self._regions = Regions()
        self._resolver = Resolver()
        # The subjects of this node, and what is left out of their entries.
        self._subjects: dict[int, LabelSet] = {}
        self._left_out: tuple[LeftOut, ...] = ()
        # By subject identity; subjects with the same policies share one object.
        self._resolved: dict[int, Resolved] = {}
        # The rules that have a number, by policy.
        self._rules: dict[PolicyRef, tuple[RuleRef, ...]] = {}

    def update(
        self,
        pods: Mapping[ObjectRef, Pod],
        namespaces: Mapping[str, Labels],
        policies: PolicySet,
        local: Collection[ObjectRef],
    ) -> None:
        """Update `tables` to these objects. Only affected parts are compiled again."""
        first = not self._pods and not self.policies
        changes = Changes()
        concerned = {**dict.fromkeys(changed_keys(self._pods, pods))}
        if local is not self._local:
            concerned.update(dict.fromkeys({*self._local} ^ {*local}))
        changes.pods = self.identities.change(pods, concerned, {*local})
        spaces = changed_keys(self._namespaces, namespaces)
        self._resolver.change_namespaces({name: namespaces.get(name) for name in spaces})
        gone = [number for number in changes.pods.gone if number in self.tables.labels]
        self._resolver.change_groups(changes.pods.groups, gone)
        cut = self._change_policies(policies, changes)
        # A named port in a rule with ipBlocks depends on the pods at these addresses: their regions may change.
        moved = pods is not self._pods and self._blocks.names_ports
        self._pods, self._namespaces, self._local = pods, namespaces, local
        if cut or moved or self._is_tight:
            self._enforce(self._named().cut(self.room.prefixes), changes)
        else:
            self._resolver.change_policies({ref: self._opened(ref) for ref in changes.policies})
        self._change_subjects(changes)
        self._finish(changes, first)

    def _change_policies(self, policies: PolicySet, changes: Changes) -> bool:
        """Update blocks and resolver. Returns whether the regions may have changed."""
        cut = False
        # Without enforcement the resolver gets no policies, so no pod is isolated.
        if self.enforce:
            changed = {PolicyRef(*ref): policies.get(ref) for ref in policies.changed(self.policies)}
            for ref, policy in changed.items():
                cut |= self._blocks.change(self.policies.get(ref), policy)
            changes.policies.update(changed)
        self.policies = policies
        return cut

    def _named(self) -> Named:
        addresses = _addresses(self._pods, self.identities.label_sets) if self._blocks.names_ports else []
        return Named(self.policies, self._blocks, addresses)

    def _enforce(self, cut: Cut, changes: Changes) -> None:
        before = {one.policy for one in self._left_out_blocks}
        self._left_out_blocks = cut.left_out
        other = before ^ {one.policy for one in cut.left_out}
        self._resolver.change_policies({ref: self._opened(ref) for ref in sorted(changes.policies | other)})
        self._change_regions(cut.regions, changes)

    def _opened(self, ref: PolicyRef) -> Policy | None:
        """A policy as it is enforced: closed if its blocks do not fit."""
        policy = self.policies.get(ref)
        if policy is None or all(ref != one.policy for one in self._left_out_blocks):
            return policy
        return policy.closed()

    def _share(self, subjects: list[LabelSet], changes: Changes) -> tuple[Demands, Closed, tuple[LeftOut, ...]]:
        """What the subjects need, and what of it is left out."""
        demands = self._resolver.demands(subjects)
        both = [*demands[0], *demands[1]]
        closed, left_out = share_entries(both, self.room)
        tighter = self._named().tighter(self._resolver, both, closed, self.room) if closed else None
        self._is_tight = tighter is not None
        if tighter is not None:
            self._enforce(tighter, changes)
            demands = self._resolver.demands(subjects)
            closed, left_out = share_entries([*demands[0], *demands[1]], self.room)
        crowded = {d.key: refs for d in demands[1] if (refs := self._resolver.crowded(d.key))}
        if crowded:
            closed = {**closed, **{key: closed.get(key, frozenset()) | refs for key, refs in crowded.items()}}
            every = sorted(frozenset[PolicyRef]().union(*crowded.values()))
            left_out += tuple(LeftOut(ref, "places among policies of its priority", 1, 0) for ref in every)
        return demands, closed, left_out

    def _change_regions(self, found: Regions, changes: Changes) -> None:
        before, after = self._regions.numbers, {region: self._ids.regions.number(region) for region in found.regions}
        gone = [region for region in before if region not in after]
        for region in gone:
            self._ids.regions.retire(region)
            changes.cidr[LpmKey.of(region.prefix.network)] = None
            changes.regions[before[region]] = None
        come = [region for region in after if region not in before]
        for region in come:
            changes.cidr[LpmKey.of(region.prefix.network)] = U32(after[region])
            changes.regions[after[region]] = region.prefix.network
        prefixes = {region.prefix for region in (*gone, *come)}
        prefixes.update(p for p in {*self._regions.pods, *found.pods} if self._regions.pods.get(p) != found.pods.get(p))
        self._regions = found.numbered(after)
        self._resolver.change_regions(self._regions, prefixes)

    def _change_subjects(self, changes: Changes) -> None:
        """Update the entries of the subjects whose policies changed, and what is left out of them."""
        numbers, label_sets = self.identities.numbers, self.identities.label_sets
        labels = {numbers[found]: found for ref in self._local if (found := label_sets.get(ref))}
        if labels == self._subjects and not self._resolver.pending:
            return
        self._subjects = labels
        subjects = sorted(labels)
        (own, tiers), closed, self._left_out = self._share([labels[n] for n in subjects], changes)
        answers = zip(*self._resolver.resolve(own, tiers, closed), strict=True)
        resolved = {subject: Resolved(*answer) for subject, answer in zip(subjects, answers, strict=True)}
        values = RuleValues(self._ids)
        for subject in dict.fromkeys((*subjects, *self._resolved)):
            new, old = resolved.get(subject, NOTHING), self._resolved.get(subject, NOTHING)
            if new.own is old.own and new.tiers is old.tiers:
                continue
            changes.has_other_policies = True
            changes.policy.update(values.changes(subject, old, new))
        self._resolved = resolved

    def _name_rules(self, changes: Changes) -> dict[int, RuleRef | None]:
        """Changes of the rule numbers: every rule of a policy that selects a subject has a number. None: the rule is no
        longer used."""
        used = {ref for resolved in self._resolved.values() for ref in resolved.policies}
        names: dict[int, RuleRef | None] = {}
        for ref in (used ^ self._rules.keys()) | (changes.policies & used):
            before = self._rules.pop(ref, ())
            policy = self.policies.get(ref) if ref in used else None
            after = _rules_of(policy) if policy is not None else ()
            if after:
                self._rules[ref] = after
            for rule in before:
                if rule not in after:
                    names[self._ids.rules.number(rule)] = None
                    self._ids.rules.retire(rule)
            names.update({self._ids.rules.number(rule): rule for rule in after})
        return names

    def _finish(self, changes: Changes, first: bool) -> None:
        last = self.tables
        flags, isolating = last.flags, last.isolating
        rules: dict[int, RuleRef | None] = {}
        if changes.has_other_policies:
            rules = self._name_rules(changes)
            flags = {
                subject: flags_of(resolved.own.isolated, resolved.tiers.asked)
                for subject, resolved in self._resolved.items()
            }
            isolating = {
                subject: {DIRECTIONS[direction]: refs for direction, refs in resolved.own.isolated.items()}
                for subject, resolved in self._resolved.items()
            }
        self.tables = PolicyTables(
            policy=evolve(last.policy, changes.policy),
            cidr=evolve(last.cidr, changes.cidr),
            identities=evolve(last.identities, changes.pods.identities),
            flags=last.flags if flags == last.flags else flags,
            rules=evolve(last.rules, rules),
            labels=evolve(last.labels, {**changes.pods.gone, **changes.pods.groups}),
            regions=evolve(last.regions, changes.regions),
            isolating=last.isolating if isolating == last.isolating else isolating,
            left_out=(*self._left_out_blocks, *self._left_out),
        )
        if first:
            self._retire_unused()

    def _retire_unused(self) -> None:
        """Retire numbers that were restored or left by a failed run and are not used. All used keys have a number
        already."""
        self.identities.keep()
        self._ids.regions.keep({*self._regions.regions})
        self._ids.rules.keep({rule for rules in self._rules.values() for rule in rules})


def _rules_of(policy: Policy) -> tuple[RuleRef, ...]:
    return tuple(policy.rule_ref(d, index) for d in PolicyDirection for index in range(len(policy.rules(d))))


def _addresses(pods: Mapping[ObjectRef, Pod], identity_of: Mapping[ObjectRef, LabelSet]) -> list[tuple[Any, LabelSet]]:
    return [
        (address, identity_of[pod.ref]) for address, pod in holders(pods.values()).items() if pod.ref in identity_of
    ]
