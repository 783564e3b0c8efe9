"""Mistakes in ClusterNetworkPolicies: an order that is left open, and rules that never decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netpolicy.cluster import Cluster, Pod
from netpolicy.evaluate import Evaluator
from netpolicy.lint.common import SIDE, Finding, pods, some
from netpolicy.selectors import peer_selects
from netpolicy.types import ClusterPolicy, Direction, Peer, PortRule, Rule, RuleRef, Selector, Tier

_EVERYTHING = Selector()
_LAST_PORT = 65535


def checks(cluster: Cluster) -> Iterator[Finding]:
    """All findings about ClusterNetworkPolicies."""
    ordered = sorted(cluster.cluster_policies, key=lambda policy: policy.strength)
    for policy in ordered:
        yield from _not_in_force(policy)
        yield from _selects_nothing(policy, cluster)
        yield from _peers_select_nothing(policy, cluster)
        yield from _same_priority(policy, ordered, cluster)
        yield from _never_decides(policy, ordered)
    yield from _baseline_is_not_asked(ordered, cluster)


def _selected(peer: Peer, cluster: Cluster) -> list[Pod]:
    return [pod for pod in pods(cluster) if peer_selects(peer, "", pod.labels, cluster.namespaces)]


def _not_in_force(policy: ClusterPolicy) -> Iterator[Finding]:
    for problem in policy.problems:
        message = f"{problem.message}: {problem.effect}; use a peer that this version enforces"
        yield Finding(policy.ref, "not-in-force", problem.field, message)


def _selects_nothing(policy: ClusterPolicy, cluster: Cluster) -> Iterator[Finding]:
    if cluster.pods and not _selected(policy.subject, cluster):
        message = f"selects no pod ({policy.subject}): use labels that namespaces and pods have"
        yield Finding(policy.ref, "selects-nothing", "spec.subject", message)


def _peers_select_nothing(policy: ClusterPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, index, rule in _rules(policy):
        for peer in dict.fromkeys(rule.peers) if cluster.pods else ():
            if peer.namespaces is not None and not _selected(peer, cluster):
                message = f"{peer} selects no pod: use labels that namespaces and pods have"
                field = f"spec.{direction}[{index}].{SIDE[direction]}"
                yield Finding(policy.ref, "peer-selects-nothing", field, message)


def _same_priority(policy: ClusterPolicy, ordered: Iterable[ClusterPolicy], cluster: Cluster) -> Iterator[Finding]:
    """Reported for the policy whose name comes later."""
    for other in ordered:
        same = (other.tier, other.priority) == (policy.tier, policy.priority) and other.name < policy.name
        if not same or not policy.directions & other.directions:
            continue
        others = {str(pod) for pod in _selected(other.subject, cluster)}
        common = [pod for pod in _selected(policy.subject, cluster) if str(pod) in others]
        if common or not cluster.pods:
            who = f" and selects {some(common)} too" if common else ""
            message = (
                f"{other.ref} has the same tier and priority{who}: the API leaves their order open, and nodenet goes "
                "by name; give each policy a priority of its own"
            )
            yield Finding(policy.ref, "same-priority", "spec.priority", message)


def _never_decides(policy: ClusterPolicy, ordered: Iterable[ClusterPolicy]) -> Iterator[Finding]:
    for direction, index, rule in _rules(policy):
        if not rule.peers or rule.peers == (Peer(),):
            # A rule that is closed; it has a finding already.
            continue
        stronger = next(_covering(policy, direction, index, rule, ordered), None)
        if stronger is not None:
            message = f"{stronger} is stronger and matches all of this, so this rule never decides: remove one of them"
            yield Finding(policy.ref, "never-decides", f"spec.{direction}[{index}]", message)


def _covering(
    policy: ClusterPolicy, direction: Direction, index: int, rule: Rule, ordered: Iterable[ClusterPolicy]
) -> Iterator[RuleRef]:
    """Stronger rules of the same tier that match whatever the rule matches, whichever pods there are."""
    for other in ordered:
        if other.tier is not policy.tier or other.strength > policy.strength:
            continue
        if not _covers_pods(other.subject, policy.subject):
            continue
        last = index if other.ref == policy.ref else len(other.rules(direction))
        for place, found in enumerate(other.rules(direction)[:last]):
            peers = all(any(_covers_peer(wide, peer) for wide in found.peers) for peer in rule.peers)
            if (peers or not found.peers) and _covers_ports(found.ports, rule.ports):
                yield other.rule_ref(direction, place)


def _covers_pods(wide: Peer, narrow: Peer) -> bool:
    if wide == narrow:
        return True
    every_namespace = wide.namespaces == _EVERYTHING or wide.namespaces == narrow.namespaces
    every_pod = wide.pods in (None, _EVERYTHING) or wide.pods == narrow.pods
    return narrow.namespaces is not None and wide.namespaces is not None and every_namespace and every_pod


def _covers_peer(wide: Peer, narrow: Peer) -> bool:
    if wide.block is not None and narrow.block is not None:
        one, other = wide.block.cidr, narrow.block.cidr
        same = one.version == other.version and other.prefixlen >= one.prefixlen
        return same and other.network_address in one
    if wide.nodes is not None and narrow.nodes is not None:
        return wide.nodes in (_EVERYTHING, narrow.nodes)
    return _covers_pods(wide, narrow)


def _covers_ports(wide: tuple[PortRule, ...], narrow: tuple[PortRule, ...]) -> bool:
    return not wide or (bool(narrow) and all(any(_covers_port(one, port) for one in wide) for port in narrow))


def _covers_port(wide: PortRule, narrow: PortRule) -> bool:
    if wide.protocol is not narrow.protocol:
        return False
    if isinstance(wide.port, str) or isinstance(narrow.port, str):
        return wide == narrow
    first, last = narrow.port or 0, narrow.end_port or narrow.port or _LAST_PORT
    return (wide.port or 0) <= first and last <= (wide.end_port or wide.port or _LAST_PORT)


def _baseline_is_not_asked(policies: Iterable[ClusterPolicy], cluster: Cluster) -> Iterator[Finding]:
    """The Baseline tier is asked only about pods that no NetworkPolicy isolates."""
    evaluator = Evaluator.of(cluster)
    for policy in policies:
        mine = _selected(policy.subject, cluster) if policy.tier is Tier.BASELINE else []
        for direction in sorted(policy.directions) if mine else ():
            isolating = [evaluator.isolating(pod.labels, direction) for pod in mine]
            if all(isolating):
                names = some(found.ref for each in isolating for found in each)
                message = (
                    f"NetworkPolicies isolate every pod that this policy selects ({names}), so the Baseline tier is "
                    "never asked: use the tier Admin, or remove the rules"
                )
                yield Finding(policy.ref, "never-decides", f"spec.{direction}", message)


def _rules(policy: ClusterPolicy) -> Iterator[tuple[Direction, int, Rule]]:
    for direction in Direction:
        for index, rule in enumerate(policy.rules(direction)):
            yield direction, index, rule
