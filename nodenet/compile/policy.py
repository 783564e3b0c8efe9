"""Compiles NetworkPolicies into nn_policy, nn_cidr, identities and isolation flags.

Entries are keyed by identity, so another pod with a known label set changes nothing. There are entries only for this
node's pods, but regions for the ipBlocks of all policies: when a pod's labels change and other policies select it, the
region numbers of its peers' addresses must stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from netpolicy.demands import Demand
from netpolicy.entries import EntryKey
from netpolicy.holders import holders
from netpolicy.regions import Blocks, Prefix, Region, Regions, partition
from netpolicy.resolve import ResolvedPolicy, Resolver
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, NamedPort, NetworkPolicy, PolicyRef, RuleRef
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.abi import POLICY_BITS_DIRECTION, POLICY_BITS_PROTOCOL, U32, EndpointFlag, LpmKey, PolicyKey, Rule
from nodenet.compile.cuts import Cut, Named
from nodenet.compile.ids import IdentityKey, Ids
from nodenet.compile.shares import DEFAULT_ROOM, Closed, LeftOut, Room, share_entries
from nodenet.evolved import changed_keys, evolve
from nodenet.model import Direction, IPNetwork, Labels, ObjectRef, Pod, Protocol

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

_DIRECTIONS = {PolicyDirection.INGRESS: Direction.INGRESS, PolicyDirection.EGRESS: Direction.EGRESS}
_FLAGS = {
    PolicyDirection.INGRESS: EndpointFlag.ISOLATED_INGRESS,
    PolicyDirection.EGRESS: EndpointFlag.ISOLATED_EGRESS,
}
_PROTOCOLS = {protocol: int(Protocol[protocol.name]) for protocol in PolicyProtocol}


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """The result of compiling NetworkPolicies: the contents of two maps, and data for endpoints, flow names and
    status."""

    # nn_policy and nn_cidr.
    policy: Mapping[PolicyKey, Rule]
    cidr: Mapping[LpmKey, U32]
    # Identity of every pod that has one. hostNetwork pods, finished pods without an endpoint here, and pods with
    # unreadable labels have none.
    identities: Mapping[ObjectRef, int]
    # Isolation flags by identity; only identities that have an endpoint here.
    flags: Mapping[int, EndpointFlag]
    # The meaning of the numbers in kernel events: rule_id, identity and region.
    rules: Mapping[int, RuleRef]
    labels: Mapping[int, LabelSet]
    regions: Mapping[int, IPNetwork]
    # By identity: the policies that isolate its endpoints.
    isolating: Mapping[int, Mapping[Direction, tuple[PolicyRef, ...]]]
    # Policies whose rules do not fit into the maps. They still isolate their pods.
    left_out: tuple[LeftOut, ...] = ()


class PolicyCompiler:
    """Compiles the policies of one Snapshot after the other. A table that did not change is the same object as in the
    previous result; the others are evolved from it (nodenet.evolved) or new."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._known: _Known | None = None

    def compile(
        self,
        pods: Mapping[ObjectRef, Pod],
        namespaces: Mapping[str, Labels],
        policies: Mapping[Any, NetworkPolicy],
        local: Collection[ObjectRef],
        room: Room = DEFAULT_ROOM,
        enforce: bool = True,
    ) -> PolicyTables:
        """Compile for the node whose endpoints belong to the pods `local` (names that are not in `pods` are ignored).

        `enforce` False: only identities; no pod is isolated. Raises OverflowError if a space of numbers is full; the
        next compilation then starts from an empty state.
        """
        known, self._known = self._known, None
        # None: the policies did not change, and neither did the labels that they use.
        distinguishing = None
        if known is None or policies is not known.policies:
            distinguishing = _distinguishing_labels(policies.values())
        if (
            known is None
            or (known.enforce, known.room) != (enforce, room)
            or distinguishing not in (None, known.distinguishing)
        ):
            # The labels that count are part of every identity: compile everything again.
            known = _Known(self._ids, distinguishing or _distinguishing_labels(policies.values()), room, enforce)
        known.update(pods, namespaces, policies, local)
        self._known = known
        return known.tables


class _Known:
    """The state of the last compilation. The next one modifies it; if that fails, it is inconsistent and is
    discarded."""

    def __init__(self, ids: Ids, distinguishing: tuple[str, ...], room: Room, enforce: bool) -> None:
        self._ids = ids
        self.distinguishing = distinguishing
        self.room = room
        self.enforce = enforce
        self.policies: Mapping[Any, NetworkPolicy] = {}
        self.tables = PolicyTables({}, {}, {}, {}, {}, {}, {}, {})
        self._without = HIGH_CARDINALITY_LABELS.difference(distinguishing)
        self._pods: Mapping[ObjectRef, Pod] = {}
        self._namespaces: Mapping[str, Labels] = {}
        self._local: Collection[ObjectRef] = ()
        self._label_sets: dict[ObjectRef, LabelSet] = {}
        self._numbers: dict[LabelSet, int] = {}
        # The number of pods with each label set.
        self._users: Counter[LabelSet] = Counter()
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
        self._resolved: dict[int, ResolvedPolicy] = {}
        # The rules that have a number, by policy.
        self._rules: dict[PolicyRef, tuple[RuleRef, ...]] = {}

    def update(
        self,
        pods: Mapping[ObjectRef, Pod],
        namespaces: Mapping[str, Labels],
        policies: Mapping[Any, NetworkPolicy],
        local: Collection[ObjectRef],
    ) -> None:
        """Update `tables` to these objects. Only affected parts are compiled again."""
        first = not self._pods and not self.policies
        changes = _Changes()
        concerned = {**dict.fromkeys(changed_keys(self._pods, pods))}
        if local is not self._local:
            concerned.update(dict.fromkeys({*self._local} ^ {*local}))
        self._change_pods(pods, concerned, {*local}, changes)
        spaces = changed_keys(self._namespaces, namespaces)
        self._resolver.change_namespaces({name: namespaces.get(name) for name in spaces})
        self._resolver.change_groups(changes.groups, [n for n in changes.gone if n in self.tables.labels])
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

    def _change_pods(
        self, pods: Mapping[ObjectRef, Pod], concerned: Iterable[ObjectRef], local: set[ObjectRef], changes: _Changes
    ) -> None:
        """Update label sets and identities. New label sets get their numbers in sorted order, so that two with the same
        hash get the same numbers on every node."""
        new: dict[ObjectRef, LabelSet] = {}
        for ref in concerned:
            pod, old = pods.get(ref), self._label_sets.pop(ref, None)
            if pod is not None and _has_identity(pod, local):
                new[ref] = label_set(pod, self._without)
            elif old is not None:
                changes.identities[ref] = None
            if old is not None:
                self._users[old] -= 1
                changes.left.add(old)
        self._label_sets.update(new)
        self._users.update(new.values())
        for labels in sorted({*new.values()} - self._numbers.keys(), key=_order):
            number = self._ids.identities.number(IdentityKey(labels, self.distinguishing))
            self._numbers[labels] = number
            changes.groups[number] = labels
        for labels in changes.left:
            if not self._users[labels]:
                del self._users[labels]
                number = self._numbers.pop(labels)
                self._ids.identities.retire(IdentityKey(labels, self.distinguishing))
                changes.gone[number] = None
        changes.identities.update({ref: self._numbers[labels] for ref, labels in new.items()})

    def _change_policies(self, policies: Mapping[Any, NetworkPolicy], changes: _Changes) -> bool:
        """Update blocks and resolver. Returns whether the regions may have changed."""
        cut = False
        # Without enforcement the resolver gets no policies, so no pod is isolated.
        if self.enforce:
            changed = {PolicyRef(*ref): policies.get(ref) for ref in changed_keys(self.policies, policies)}
            for ref, policy in changed.items():
                cut |= self._blocks.change(self.policies.get(ref), policy)
            changes.policies.update(changed)
        self.policies = policies
        return cut

    def _named(self) -> Named:
        addresses = _addresses(self._pods, self._label_sets) if self._blocks.names_ports else []
        return Named(self.policies, self._blocks, addresses)

    def _enforce(self, cut: Cut, changes: _Changes) -> None:
        before = {one.policy for one in self._left_out_blocks}
        self._left_out_blocks = cut.left_out
        other = before ^ {one.policy for one in cut.left_out}
        self._resolver.change_policies({ref: self._opened(ref) for ref in sorted(changes.policies | other)})
        self._change_regions(cut.regions, changes)

    def _opened(self, ref: PolicyRef) -> NetworkPolicy | None:
        """A policy as it is enforced: without rules if its blocks do not fit."""
        policy = self.policies.get(ObjectRef(*ref))
        if policy is None or all(ref != one.policy for one in self._left_out_blocks):
            return policy
        return replace(policy, ingress=(), egress=())

    def _share(self, subjects: list[LabelSet], changes: _Changes) -> tuple[list[Demand], Closed, tuple[LeftOut, ...]]:
        """What the subjects need, and what of it is left out."""
        demands = self._resolver.demands(subjects)
        closed, left_out = share_entries(demands, self.room)
        tighter = self._named().tighter(self._resolver, demands, closed, self.room) if closed else None
        self._is_tight = tighter is not None
        if tighter is not None:
            self._enforce(tighter, changes)
            demands = self._resolver.demands(subjects)
            closed, left_out = share_entries(demands, self.room)
        return demands, closed, left_out

    def _change_regions(self, found: Regions, changes: _Changes) -> None:
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

    def _change_subjects(self, changes: _Changes) -> None:
        """Update the entries of the subjects whose policies changed, and what is left out of them."""
        labels = {self._numbers[found]: found for ref in self._local if (found := self._label_sets.get(ref))}
        if labels == self._subjects and not self._resolver.pending:
            return
        self._subjects = labels
        subjects = sorted(labels)
        demands, closed, self._left_out = self._share([labels[n] for n in subjects], changes)
        resolved = dict(zip(subjects, self._resolver.resolve(demands, closed), strict=True))
        # By the id of the rule, because hashing the rule costs more. The rules exist as long as their entries.
        values: dict[int, Rule] = {}
        for subject in dict.fromkeys((*subjects, *self._resolved)):
            new, old = resolved.get(subject), self._resolved.get(subject)
            if new is old:
                continue
            changes.has_other_policies = True
            after = new.entries if new is not None else {}
            keys: Iterable[EntryKey] = after
            # The resolver knows which entries changed since `old`; otherwise compare all entries.
            if new is not None and old is not None and new.since is old:
                keys = new.changed
            elif old is not None:
                keys = {**old.entries, **after}
            for key in keys:
                ref = after.get(key)
                value = values.get(id(ref)) if ref is not None else None
                if ref is not None and value is None:
                    value = values[id(ref)] = Rule.allow(self._ids.rules.number(ref))
                changes.policy[_policy_key(subject, key)] = value
        self._resolved = resolved

    def _name_rules(self, changes: _Changes) -> dict[int, RuleRef | None]:
        """Changes of the rule numbers: every rule of a policy that selects a subject has a number. None: the rule is no
        longer used."""
        used = {ref for resolved in self._resolved.values() for ref in resolved.policies}
        names: dict[int, RuleRef | None] = {}
        for ref in (used ^ self._rules.keys()) | (changes.policies & used):
            before = self._rules.pop(ref, ())
            after = _rules_of(self.policies[ObjectRef(*ref)]) if ref in used else ()
            if after:
                self._rules[ref] = after
            for rule in before:
                if rule not in after:
                    names[self._ids.rules.number(rule)] = None
                    self._ids.rules.retire(rule)
            names.update({self._ids.rules.number(rule): rule for rule in after})
        return names

    def _finish(self, changes: _Changes, first: bool) -> None:
        last = self.tables
        flags, isolating = last.flags, last.isolating
        rules: dict[int, RuleRef | None] = {}
        if changes.has_other_policies:
            rules = self._name_rules(changes)
            flags = {subject: _flags(resolved.isolated) for subject, resolved in self._resolved.items()}
            isolating = {
                subject: {_DIRECTIONS[direction]: refs for direction, refs in resolved.isolated.items()}
                for subject, resolved in self._resolved.items()
            }
        self.tables = PolicyTables(
            policy=evolve(last.policy, changes.policy),
            cidr=evolve(last.cidr, changes.cidr),
            identities=evolve(last.identities, changes.identities),
            flags=last.flags if flags == last.flags else flags,
            rules=evolve(last.rules, rules),
            labels=evolve(last.labels, {**changes.gone, **changes.groups}),
            regions=evolve(last.regions, changes.regions),
            isolating=last.isolating if isolating == last.isolating else isolating,
            left_out=(*self._left_out_blocks, *self._left_out),
        )
        if first:
            self._retire_unused()

    def _retire_unused(self) -> None:
        """Retire numbers that were restored or left by a failed run and are not used. All used keys have a number
        already."""
        self._ids.identities.keep({IdentityKey(labels, self.distinguishing) for labels in self._numbers})
        self._ids.regions.keep({*self._regions.regions})
        self._ids.rules.keep({rule for rules in self._rules.values() for rule in rules})


@dataclass(slots=True)
class _Changes:
    """The changes of one compilation; the value None deletes the entry."""

    identities: dict[ObjectRef, int | None] = field(default_factory=dict)
    # Label sets that lost a pod.
    left: set[LabelSet] = field(default_factory=set)
    groups: dict[int, LabelSet] = field(default_factory=dict)
    gone: dict[int, None] = field(default_factory=dict)
    policy: dict[PolicyKey, Rule | None] = field(default_factory=dict)
    cidr: dict[LpmKey, U32 | None] = field(default_factory=dict)
    regions: dict[int, IPNetwork | None] = field(default_factory=dict)
    policies: set[PolicyRef] = field(default_factory=set)
    # The entries or the policies of at least one subject changed.
    has_other_policies: bool = False


def _policy_key(subject: int, key: EntryKey) -> PolicyKey:
    peer, direction, protocol, port, port_bits = key
    if protocol is None:
        return PolicyKey(POLICY_BITS_DIRECTION, subject, peer, _DIRECTIONS[direction], 0, 0)
    bits = POLICY_BITS_PROTOCOL + port_bits
    return PolicyKey(bits, subject, peer, _DIRECTIONS[direction], _PROTOCOLS[protocol], port)


def _rules_of(policy: NetworkPolicy) -> tuple[RuleRef, ...]:
    return tuple(policy.rule_ref(d, index) for d in PolicyDirection for index in range(len(policy.rules(d))))


def _has_identity(pod: Pod, local: Collection[ObjectRef]) -> bool:
    """hostNetwork pods have the identity of their node. A finished pod has one only while it has an endpoint here. A
    pod with an unreadable label has none: no selector matches it, and its endpoint is isolated."""
    return not pod.host_network and not pod.labels_unread and (not pod.finished or pod.ref in local)


def identities(
    pods: Mapping[ObjectRef, Pod], policies: Iterable[NetworkPolicy], local: Collection[ObjectRef] = ()
) -> dict[ObjectRef, LabelSet]:
    """The label set of each pod that has an identity."""
    without = HIGH_CARDINALITY_LABELS.difference(_distinguishing_labels(policies))
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
    policies: Collection[NetworkPolicy],
    ipcache: Mapping[LpmKey, U32],
    cidr: Mapping[LpmKey, U32],
) -> None:
    """Take over the numbers that pinned nn_ipcache and nn_cidr hold, before the first compile of a new process.

    Numbers are hashes, so most would be the same anyway. This restores the few that differ because of a collision.
    """
    held = {key.addr: value.value for key, value in ipcache.items()}
    by_pod, distinguishing = identities(pods, policies), _distinguishing_labels(policies)
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


def _addresses(pods: Mapping[ObjectRef, Pod], identity_of: Mapping[ObjectRef, LabelSet]) -> list[tuple[Any, LabelSet]]:
    return [
        (address, identity_of[pod.ref]) for address, pod in holders(pods.values()).items() if pod.ref in identity_of
    ]


def _distinguishing_labels(policies: Iterable[NetworkPolicy]) -> tuple[str, ...]:
    """The high-cardinality labels that policies use. They are part of identities."""
    keys: set[str] = set()
    for policy in policies:
        keys |= policy.selector.keys
        for rule in (*policy.ingress, *policy.egress):
            for peer in rule.peers:
                if peer.pods is not None:
                    keys |= peer.pods.keys
    return tuple(sorted(keys & HIGH_CARDINALITY_LABELS))


def _flags(isolated: Collection[PolicyDirection]) -> EndpointFlag:
    flags = EndpointFlag(0)
    for direction in isolated:
        flags |= _FLAGS[direction]
    return flags


def _order(labels: LabelSet) -> tuple[object, ...]:
    return (labels.namespace, labels.labels, labels.named_ports)
