"""Rules that allow or isolate more than their author meant, and rules without effect."""

from __future__ import annotations

from collections.abc import Iterator

from netpolicy.cluster import Cluster, Pod
from netpolicy.lint.common import SIDE, Finding, rules, some, subjects
from netpolicy.match import ports_match
from netpolicy.party import Traffic
from netpolicy.selectors import matches
from netpolicy.types import Direction, NetworkPolicy, Peer, Rule


def wide_rule(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """podSelector {} with a rule that allows so much that the isolation has no effect, or that opens a port of every
    pod."""
    if policy.selector.requirements:
        return
    for direction, index, rule in rules(policy):
        # Ports to everywhere are what an egress policy for a whole namespace usually has: DNS, HTTPS.
        if rule.ports and (direction is Direction.EGRESS or _one_workload(policy, cluster)):
            continue
        field = f"spec.{direction}[{index}]"
        what = some(rule.ports) if rule.ports else "all traffic" if not rule.peers else "every port"
        everyone = f"for all pods of namespace {policy.namespace} this rule allows {what} {SIDE[direction]}"
        fix = (
            "select the pods that need it with podSelector" if rule.ports else "select pods, name peers, or name ports"
        )
        end = f", and no other policy can restrict it: {fix}"
        if not rule.peers:
            yield Finding(policy.ref, "wide-rule", field, f"{everyone} everywhere{end}")
        for place, peer in enumerate(rule.peers):
            if _is_wide(peer):
                yield Finding(
                    policy.ref, "wide-rule", f"{field}.{SIDE[direction]}[{place}]", f"{everyone} {_width(peer)}{end}"
                )


def _one_workload(policy: NetworkPolicy, cluster: Cluster) -> bool:
    return len({pod.workload for pod in subjects(policy, cluster)}) == 1


def _is_wide(peer: Peer) -> bool:
    if peer.block is not None:
        return peer.block.cidr.prefixlen == 0 and not peer.block.excepts
    all_namespaces = peer.namespaces is not None and not peer.namespaces.requirements
    return all_namespaces and (peer.pods is None or not peer.pods.requirements)


def _width(peer: Peer) -> str:
    return f"every address ({peer.block})" if peer.block is not None else "every pod of every namespace"


def isolates_others(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """podSelector {} with ingress rules for ports that only some pods have: the others are cut off."""
    opened = policy.rules(Direction.INGRESS)
    if policy.selector.requirements or not opened or not all(rule.ports for rule in opened):
        return
    meant = [pod for pod in subjects(policy, cluster) if _serves(pod, opened)]
    cut = [
        pod
        for pod in subjects(policy, cluster)
        if pod.ports and not _serves(pod, opened) and not _isolated_elsewhere(pod, policy, cluster)
    ]
    if not meant or not cut:
        return
    message = (
        f"selects every pod of namespace {policy.namespace}, so it isolates {some(pod.workload for pod in cut)} too, "
        f"and nothing can reach {some(port for pod in cut for port in pod.ports)} of them: let podSelector select "
        f"{some(pod.workload for pod in meant)} only"
    )
    yield Finding(policy.ref, "isolates-others", "spec.podSelector", message)


def _serves(pod: Pod, opened: tuple[Rule, ...]) -> bool:
    return any(
        ports_match(rule.ports, Traffic(port.protocol, port.port), pod.labels) for rule in opened for port in pod.ports
    )


def _isolated_elsewhere(pod: Pod, policy: NetworkPolicy, cluster: Cluster) -> bool:
    """True if another policy isolates the pod for ingress: its author knows that it is isolated."""
    return any(
        other.ref != policy.ref
        and other.namespace == pod.namespace
        and Direction.INGRESS in other.directions
        and matches(other.selector, pod.labels.mapping)
        for other in cluster.policies
    )


def unreadable(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """Only for objects from an API server: manifests with such parts are rejected earlier."""
    for problem in policy.problems:
        yield Finding(policy.ref, "unreadable", problem.field, f"{problem.message}: {problem.effect}")


def ignored_rules(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, found in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
        if found and direction not in policy.directions:
            name = direction.capitalize()
            message = f"has no effect: policyTypes does not name {name}; add {name} to policyTypes, or remove the rules"
            yield Finding(policy.ref, "ignored-rules", f"spec.{direction}", message)
