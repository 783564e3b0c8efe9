"""Finds common mistakes in NetworkPolicies: valid objects that probably do not do what their author intended.

Checks that need pods run only if the input has pods, and checks of addresses only if an address is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from netpolicy.cluster import Cluster, Pod
from netpolicy.evaluate import Evaluator, Party, Traffic, port_matches
from netpolicy.selectors import matches, peer_selects
from netpolicy.types import (
    NAMESPACE_NAME_LABEL,
    Direction,
    LabelSet,
    NetworkPolicy,
    Operator,
    Peer,
    PolicyRef,
    PortRule,
    Protocol,
    Requirement,
    Rule,
    namespace_labels,
)

_DNS = (Traffic(Protocol.UDP, 53), Traffic(Protocol.TCP, 53))
_DNS_NAMESPACE = "kube-system"
_SIDE = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake. `check` is its short name, `field` its place in the policy, `message` a sentence."""

    policy: PolicyRef
    check: str
    field: str
    message: str

    def as_json(self) -> dict[str, Any]:
        return {
            "namespace": self.policy.namespace,
            "policy": self.policy.name,
            "check": self.check,
            "field": self.field,
            "message": self.message,
        }


def lint(cluster: Cluster) -> list[Finding]:
    """All findings, sorted by policy and field. Dormant pods are included, because a policy may be intended for
    them."""
    cluster = replace(cluster, pods=cluster.pods + cluster.dormant)
    found = [
        finding
        for policy in sorted(cluster.policies, key=lambda p: p.ref)
        for check in _CHECKS
        for finding in check(policy, cluster)
    ]
    found += _no_dns(cluster)
    return sorted(set(found), key=lambda f: (f.policy, f.field, f.check, f.message))


def _selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods or _subjects(policy, cluster):
        return
    elsewhere = sorted({p.namespace for p in _pods(cluster) if matches(policy.selector, p.labels.mapping)})
    hint = f"; pods with these labels are in {', '.join(elsewhere)}" if elsewhere and policy.selector.keys else ""
    message = f"selects no pod in namespace {policy.namespace} (podSelector {policy.selector}){hint}"
    message += _may_be_custom(policy.namespace, cluster)
    yield Finding(policy.ref, "selects-nothing", "spec.podSelector", message)


def _may_be_custom(namespace: str, cluster: Cluster) -> str:
    """A custom resource without a pod template may still create pods."""
    near = [name for name in cluster.custom if name.partition(" ")[2].startswith(f"{namespace}/")]
    return f"; it is not known here whether {near[0]} creates such pods" if near else ""


def _named_port_missing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, index, rule in _rules(policy):
        for place, port in enumerate(rule.ports):
            if not isinstance(port.port, str):
                continue
            ingress = direction is Direction.INGRESS
            pods = _subjects(policy, cluster) if ingress else _peer_pods(policy, rule, cluster)
            if not pods or any(pod.labels.ports_named(port.port, port.protocol) for pod in pods):
                continue
            who = "no pod that the policy selects" if ingress else "no pod that the rule allows"
            other = sorted({str(p.protocol) for pod in pods for p in pod.ports if p.name == port.port})
            message = f"{who} has a {port.protocol} port named {port.port}" + (
                f" (there is one for {', '.join(other)}: set protocol)" if other else ""
            )
            yield Finding(policy.ref, "named-port-missing", f"spec.{direction}[{index}].ports[{place}].port", message)


def _namespace_label_missing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    names = {policy.namespace, *cluster.namespaces, *(pod.namespace for pod in cluster.pods)}
    known = {name: namespace_labels(cluster.namespaces, name) for name in names}
    for direction, index, place, peer in _peers(policy):
        for requirement in peer.namespaces.requirements if peer.namespaces else ():
            # NotIn and DoesNotExist also match namespaces without the label.
            if requirement.operator not in (Operator.IN, Operator.EXISTS):
                continue
            if any(_one(requirement, labels) for labels in known.values()):
                continue
            field = f"spec.{direction}[{index}].{_SIDE[direction]}[{place}].namespaceSelector"
            hint = ""
            wanted = [value for value in requirement.values if value in names]
            if wanted and requirement.key != NAMESPACE_NAME_LABEL:
                hint = f"; to name the namespace {wanted[0]}, use {NAMESPACE_NAME_LABEL}={wanted[0]}"
            yield Finding(policy.ref, "namespace-label-missing", field, f"no namespace has {requirement}{hint}")


def _peer_selects_nothing(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    if not cluster.pods:
        return
    for direction, index, place, peer in _peers(policy):
        if peer.pods is None or not peer.pods.requirements:
            continue
        pods = [p for p in _pods(cluster) if peer_selects(peer, policy.namespace, p.labels, cluster.namespaces)]
        if pods:
            continue
        field = f"spec.{direction}[{index}].{_SIDE[direction]}[{place}].podSelector"
        elsewhere = sorted({p.namespace for p in _pods(cluster) if matches(peer.pods, p.labels.mapping)})
        if peer.namespaces is None and elsewhere:
            message = (
                f"no pod of namespace {policy.namespace} has {peer.pods}, but pods of {', '.join(elsewhere)} do: a "
                "podSelector without namespaceSelector means the policy's own namespace"
            )
            yield Finding(policy.ref, "peer-in-other-namespace", field, message)
        elif not elsewhere:
            yield Finding(policy.ref, "peer-selects-nothing", field, f"no pod anywhere has {peer.pods}")


def _block_covers_pods(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, index, place, peer in _peers(policy):
        block = peer.block
        if block is None:
            continue
        field = f"spec.{direction}[{index}].{_SIDE[direction]}[{place}].ipBlock"
        covered = [pod for pod in _pods(cluster) if any(address in block for address in pod.ips)]
        networks = [cidr for node in cluster.nodes for cidr in node.pod_cidrs if cidr.network_address in block]
        note = "pods' addresses change; select pods by labels, and exclude their networks with except"
        if covered:
            more = f" and {len(covered) - 1} more" if len(covered) > 1 else ""
            message = f"{block} covers the address of pod {covered[0]}{more}: {note}"
        elif networks:
            message = f"{block} covers the pod network {networks[0]}: {note}"
        elif block.cidr.prefixlen == 0 and not block.excepts:
            message = f"{block} covers every pod's address too, not only addresses outside the cluster: {note}"
        else:
            continue
        yield Finding(policy.ref, "block-covers-pods", field, message)


def _wide(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """podSelector {} with a rule that allows so much that the isolation has no effect."""
    if policy.selector.requirements:
        return
    for direction, index, rule in _rules(policy):
        if rule.ports:
            continue
        field = f"spec.{direction}[{index}]"
        everyone = f"for all pods of namespace {policy.namespace} this rule allows"
        if not rule.peers:
            message = f"{everyone} all traffic {_SIDE[direction]} everywhere, and no other policy can restrict it"
            yield Finding(policy.ref, "wide-rule", field, message)
        for place, peer in enumerate(rule.peers):
            if _is_wide(peer):
                message = (
                    f"{everyone} every port {_SIDE[direction]} {_width(peer)}, and no other policy can restrict it"
                )
                yield Finding(policy.ref, "wide-rule", f"{field}.{_SIDE[direction]}[{place}]", message)


def _is_wide(peer: Peer) -> bool:
    if peer.block is not None:
        return peer.block.cidr.prefixlen == 0 and not peer.block.excepts
    all_namespaces = peer.namespaces is not None and not peer.namespaces.requirements
    return all_namespaces and (peer.pods is None or not peer.pods.requirements)


def _width(peer: Peer) -> str:
    return f"every address ({peer.block})" if peer.block is not None else "every pod of every namespace"


def _unreadable(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """Only for objects from an API server: manifests with such parts are rejected earlier."""
    for problem in policy.problems:
        yield Finding(policy.ref, "unreadable", problem.field, f"{problem.message}: {problem.effect}")


def _ignored_rules(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
        if rules and direction not in policy.directions:
            message = f"has no effect: policyTypes does not name {direction.capitalize()}"
            yield Finding(policy.ref, "ignored-rules", f"spec.{direction}", message)


def _no_dns(cluster: Cluster) -> Iterator[Finding]:
    """Pods that are isolated for egress and for which no rule allows port 53, over UDP or over TCP."""
    evaluator = Evaluator(cluster.policies, cluster.namespaces)
    subjects: dict[LabelSet, str] = {}
    for pod in _pods(cluster):
        subjects.setdefault(pod.labels, str(pod))
    for policy in cluster.policies:
        if not _subjects(policy, cluster):
            # The input has policies without their pods: use a pod that the selector describes.
            typical = LabelSet.of(policy.namespace, dict(_typical(policy)))
            if matches(policy.selector, typical.mapping):
                name = f"a pod with {policy.selector}" if typical.labels else "a pod without labels"
                subjects.setdefault(typical, name)
    for subject, name in sorted(subjects.items(), key=lambda item: item[1]):
        policies = evaluator.isolating(subject, Direction.EGRESS)
        missing = [traffic for traffic in _DNS if not _may_send(evaluator, policies, traffic, cluster)]
        if policies and missing:
            what = " and ".join(str(traffic) for traffic in missing)
            message = f"{name} is isolated for egress and no rule allows {what}, so DNS names will not resolve"
            refs = ", ".join(str(policy.ref) for policy in policies)
            if len(policies) > 1:
                message += f" (isolated by {refs})"
            yield Finding(policies[0].ref, "egress-without-dns", "spec.egress", message)


def _typical(policy: NetworkPolicy) -> Iterator[tuple[str, str]]:
    for requirement in policy.selector.requirements:
        if requirement.operator in (Operator.IN, Operator.EXISTS):
            yield requirement.key, requirement.values[0] if requirement.values else ""


def _may_send(evaluator: Evaluator, policies: Iterable[NetworkPolicy], traffic: Traffic, cluster: Cluster) -> bool:
    servers = [pod for pod in cluster.pods if any(p.port == 53 and p.protocol is traffic.protocol for p in pod.ports)]
    for policy in policies:
        for rule in policy.rules(Direction.EGRESS):
            if servers and any(_opens(evaluator, policy, rule, traffic, server) for server in servers):
                return True
            if not servers and _may_be_dns(policy, rule, traffic, cluster):
                return True
    return False


def _opens(evaluator: Evaluator, policy: NetworkPolicy, rule: Rule, traffic: Traffic, server: Pod) -> bool:
    party = Party.of(server, next(iter(server.ips), None))
    if rule.ports and not any(port_matches(port, traffic, server.labels) for port in rule.ports):
        return False
    return not rule.peers or any(evaluator.peer_matches(policy.namespace, peer, party) for peer in rule.peers)


def _may_be_dns(policy: NetworkPolicy, rule: Rule, traffic: Traffic, cluster: Cluster) -> bool:
    """True if a rule may be intended for name servers that are not in the input: those of kube-system, or at an
    address."""
    if rule.ports and not any(_dns_port(port, traffic) for port in rule.ports):
        return False
    return not rule.peers or any(_dns_peer(policy, peer, cluster) for peer in rule.peers)


def _dns_port(port: PortRule, traffic: Traffic) -> bool:
    if isinstance(port.port, str):
        return port.protocol is traffic.protocol and port.port.startswith("dns")
    return port_matches(port, traffic, None)


def _dns_peer(policy: NetworkPolicy, peer: Peer, cluster: Cluster) -> bool:
    if peer.block is not None:
        return True
    if peer.pods is None and peer.namespaces is None:
        return False
    if peer.namespaces is None:
        return policy.namespace == _DNS_NAMESPACE
    if matches(peer.namespaces, namespace_labels(cluster.namespaces, _DNS_NAMESPACE)):
        return True
    # The namespaces may be ones that are not in the input; those in the input have no name server.
    shown = {policy.namespace, *cluster.namespaces, *(pod.namespace for pod in cluster.pods)}
    return not any(matches(peer.namespaces, namespace_labels(cluster.namespaces, name)) for name in shown)


def _one(requirement: Requirement, labels: dict[str, str]) -> bool:
    value = labels.get(requirement.key)
    return value is not None and (requirement.operator is Operator.EXISTS or value in requirement.values)


def _pods(cluster: Cluster) -> list[Pod]:
    """The pods that policy can select."""
    return [pod for pod in cluster.pods if not pod.host_network]


def _subjects(policy: NetworkPolicy, cluster: Cluster) -> list[Pod]:
    return [
        pod
        for pod in _pods(cluster)
        if pod.namespace == policy.namespace and matches(policy.selector, pod.labels.mapping)
    ]


def _peer_pods(policy: NetworkPolicy, rule: Rule, cluster: Cluster) -> list[Pod]:
    return [
        pod
        for pod in _pods(cluster)
        if not rule.peers
        or any(
            peer_selects(peer, policy.namespace, pod.labels, cluster.namespaces)
            or (peer.block is not None and any(address in peer.block for address in pod.ips))
            for peer in rule.peers
        )
    ]


def _rules(policy: NetworkPolicy) -> Iterator[tuple[Direction, int, Rule]]:
    for direction in Direction:
        for index, rule in enumerate(policy.rules(direction)):
            yield direction, index, rule


def _peers(policy: NetworkPolicy) -> Iterator[tuple[Direction, int, int, Peer]]:
    for direction, index, rule in _rules(policy):
        for place, peer in enumerate(rule.peers):
            yield direction, index, place, peer


_CHECKS: tuple[Callable[[NetworkPolicy, Cluster], Iterator[Finding]], ...] = (
    _selects_nothing,
    _named_port_missing,
    _namespace_label_missing,
    _peer_selects_nothing,
    _block_covers_pods,
    _wide,
    _ignored_rules,
    _unreadable,
)
