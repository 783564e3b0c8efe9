"""NetworkPolicies -> nn_policy, nn_cidr, identities and isolation flags.

Entries are keyed by identity: a further pod with a known label set changes nothing here. Entries are made for this
node's pods alone, regions for the blocks of every policy: a pod that gets other labels, and with them other policies,
must find its peers' addresses under the region numbers that they had before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from netpolicy.holders import holders
from netpolicy.regions import Prefix, Region, Regions, of_policies, partition
from netpolicy.resolve import ResolvedPolicy, Resolver
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, NetworkPolicy, PolicyRef, RuleRef
from netpolicy.types import NamedPort as PolicyNamedPort
from netpolicy.types import Protocol as PolicyProtocol
from nodenet.abi import POLICY_BITS_DIRECTION, POLICY_BITS_PROTOCOL, U32, EndpointFlag, LpmKey, PolicyKey
from nodenet.compile.ids import IdentityKey, Ids
from nodenet.model import Direction, IPNetwork, Labels, ObjectRef, Pod, Protocol

# Labels whose values differ from pod to pod or from rollout to rollout. They are part of a pod's identity only when a
# policy names them: else each pod would be an identity of its own.
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
_NAMED_PROTOCOLS = {Protocol[protocol.name]: protocol for protocol in PolicyProtocol}

_Shape = tuple[int, tuple[int, Direction, int, int], U32]


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """What NetworkPolicies make of a snapshot: two maps' contents, and what endpoints and people need beside them."""

    # nn_policy and nn_cidr.
    policy: Mapping[PolicyKey, U32]
    cidr: Mapping[LpmKey, U32]
    # Identity of every pod that has one: not of hostNetwork pods, not of finished ones that have no endpoint here.
    identities: Mapping[ObjectRef, int]
    # Isolation of the endpoints with that identity; identities without endpoints here are absent.
    flags: Mapping[int, EndpointFlag]
    # Names: rule_id, identity and region as the kernel's events tell them.
    rules: Mapping[int, RuleRef]
    labels: Mapping[int, LabelSet]
    regions: Mapping[int, IPNetwork]
    # Which policies isolate the endpoints with that identity.
    isolating: Mapping[int, Mapping[Direction, tuple[PolicyRef, ...]]]


def compile_policy(
    pods: Mapping[ObjectRef, Pod],
    namespaces: Mapping[str, Labels],
    policies: Collection[NetworkPolicy],
    local: Collection[ObjectRef],
    ids: Ids,
    enforce: bool = True,
) -> PolicyTables:
    """Compile for the node whose endpoints are those of the pods `local` (names not among `pods` are left out).

    `enforce` False: identities only; nothing is isolated and nothing needs allowing.
    """
    identity_of = identities(pods, policies, local)
    told_apart = _told_apart(policies)
    keys = {labels: IdentityKey(labels, told_apart) for labels in sorted(set(identity_of.values()), key=_order)}
    numbers = {labels: ids.identities.number(key) for labels, key in keys.items()}
    groups = {number: labels for labels, number in numbers.items()}
    subjects = sorted({numbers[identity_of[ref]] for ref in local if ref in identity_of})
    enforced = policies if enforce else []
    regions = _number_regions(of_policies(enforced, _addresses(pods, identity_of)), ids)
    resolver = Resolver(enforced, namespaces, groups, regions)
    table: dict[PolicyKey, U32] = {}
    flags: dict[int, EndpointFlag] = {}
    isolating: dict[int, Mapping[Direction, tuple[PolicyRef, ...]]] = {}
    rules: dict[RuleRef, int] = {}
    # Subjects under the same policies share a resolution: its entries are translated once. (The resolver keeps them all
    # alive, so that an id means one of them.)
    shapes: dict[int, list[_Shape]] = {}
    for subject in subjects:
        resolved = resolver.resolve(groups[subject])
        flags[subject] = _flags(resolved.isolated)
        isolating[subject] = {_DIRECTIONS[direction]: refs for direction, refs in resolved.isolated.items()}
        if id(resolved) not in shapes:
            shapes[id(resolved)] = _shape(resolved, rules, ids)
        table.update((PolicyKey(bits, subject, *rest), value) for bits, rest, value in shapes[id(resolved)])
    ids.identities.keep(set(keys.values()))
    ids.regions.keep(set(regions.regions))
    ids.rules.keep(rules.keys())
    return PolicyTables(
        policy=table,
        cidr={LpmKey.of(region.prefix.network): U32(number) for region, number in regions.numbers.items()},
        identities={ref: numbers[labels] for ref, labels in identity_of.items()},
        flags=flags,
        rules={number: ref for ref, number in rules.items()},
        labels=groups,
        regions={number: region.prefix.network for region, number in regions.numbers.items()},
        isolating=isolating,
    )


def identities(
    pods: Mapping[ObjectRef, Pod], policies: Iterable[NetworkPolicy], local: Collection[ObjectRef] = ()
) -> dict[ObjectRef, LabelSet]:
    """The label set that stands for each pod. hostNetwork pods are their node and have none; nor has a pod whose labels
    cannot all be read: no selector matches it, and its endpoint is isolated.
    """
    without = HIGH_CARDINALITY_LABELS.difference(_told_apart(policies))
    wanted = set(local)
    return {
        ref: label_set(pod, without)
        for ref, pod in pods.items()
        if not pod.host_network and not pod.labels_unread and (not pod.finished or ref in wanted)
    }


def label_set(pod: Pod, without: Collection[str] = HIGH_CARDINALITY_LABELS) -> LabelSet:
    """A pod as a policy sees it, without the labels that no policy can tell apart."""
    labels = {key: value for key, value in pod.labels.items() if key not in without}
    ports = [
        PolicyNamedPort(port.name, _NAMED_PROTOCOLS[port.protocol], port.port)
        for port in pod.named_ports
        if port.protocol in _NAMED_PROTOCOLS
    ]
    return LabelSet.of(pod.ref.namespace, labels, ports)


def restore(
    ids: Ids,
    pods: Mapping[ObjectRef, Pod],
    policies: Collection[NetworkPolicy],
    ipcache: Mapping[LpmKey, U32],
    cidr: Mapping[LpmKey, U32],
) -> None:
    """Take over the numbers that pinned nn_ipcache and nn_cidr hold, before the first compile of a new process.

    Numbers are hashes and come out alike by themselves, but for the few that collided: those are told apart here.
    """
    held = {key.addr: value.value for key, value in ipcache.items()}
    by_pod, told_apart = identities(pods, policies), _told_apart(policies)
    whose = holders(pods.values())
    ids.identities.restore(
        (IdentityKey(labels, told_apart), held[ip])
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


def _number_regions(regions: Regions, ids: Ids) -> Regions:
    return regions.numbered({region: ids.regions.number(region) for region in regions.regions})


def _addresses(pods: Mapping[ObjectRef, Pod], identity_of: Mapping[ObjectRef, LabelSet]) -> list[tuple[Any, LabelSet]]:
    return [
        (address, identity_of[pod.ref]) for address, pod in holders(pods.values()).items() if pod.ref in identity_of
    ]


def _told_apart(policies: Iterable[NetworkPolicy]) -> tuple[str, ...]:
    """The high-cardinality labels that policies name, and that therefore count."""
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


def _shape(resolved: ResolvedPolicy, rules: dict[RuleRef, int], ids: Ids) -> list[_Shape]:
    """Entries but for the subject: (prefixlen, what follows the subject, value). Numbers new rules in `rules`."""
    found: list[_Shape] = []
    values: dict[int, U32] = {}
    for key, ref in resolved.entries.items():
        # Rules are compared by identity first: the same object comes by thousands of times.
        value = values.get(id(ref))
        if value is None:
            if ref not in rules:
                rules[ref] = ids.rules.number(ref)
            value = values[id(ref)] = U32(rules[ref])
        direction = _DIRECTIONS[key.direction]
        if key.protocol is None:
            found.append((POLICY_BITS_DIRECTION, (key.peer, direction, 0, 0), value))
        else:
            rest = (key.peer, direction, _PROTOCOLS[key.protocol], key.port)
            found.append((POLICY_BITS_PROTOCOL + key.port_bits, rest, value))
    return found


def _order(labels: LabelSet) -> tuple[object, ...]:
    return (labels.namespace, labels.labels, labels.named_ports)
