"""Isolation that cuts paths which every cluster needs: to DNS, and to the kubelet.

What a node's kubelet sends to the pods of the node (probes) is always allowed, so nothing can cut it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from netpolicy.cluster import Cluster, Pod
from netpolicy.evaluate import DirectionVerdict, Evaluator
from netpolicy.lint.common import Finding, pods, some, subjects
from netpolicy.match import port_matches
from netpolicy.party import Party, Traffic
from netpolicy.selectors import matches
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
    Rule,
    RuleRef,
    namespace_labels,
)

_DNS = (Traffic(Protocol.UDP, 53), Traffic(Protocol.TCP, 53))
_DNS_NAMESPACE = "kube-system"
_KUBELET = Traffic(Protocol.TCP, 10250)
# Its work is to ask every kubelet.
_METRICS_SERVER = "metrics-server"
# A pod that no policy of the input selects, in a namespace of its own.
_STRANGER = Party("a pod of another namespace", LabelSet.of("any-other-namespace", {}))


def egress_without_dns(cluster: Cluster) -> Iterator[Finding]:
    """Pods that are isolated for egress and for which no rule allows port 53, over UDP or over TCP."""
    evaluator = Evaluator.of(cluster)
    servers = {traffic: [pod for pod in cluster.pods if _listens(pod, traffic)] for traffic in _DNS}
    for subject, name in sorted(_senders(cluster).items(), key=lambda item: item[1]):
        policies = evaluator.isolating(subject, Direction.EGRESS)
        if not any(tier.concerns(subject, Direction.EGRESS) for tier in evaluator.tiers):
            continue
        missing = [each for each in _DNS if not _may_ask(evaluator, subject, each, servers[each], cluster)]
        denied = _denied(evaluator, subject, missing, servers)
        if denied is not None:
            message = f"{denied} denies {name} {missing[0]} to the DNS servers, so DNS names will not resolve"
            yield Finding(denied.owner, "egress-without-dns", f"spec.egress[{denied.index}]", message)
        elif missing and policies:
            what = " and ".join(str(traffic) for traffic in missing)
            message = (
                f"{name} is isolated for egress and no rule allows {what}, so DNS names will not resolve: add an "
                f"egress rule to namespace {_DNS_NAMESPACE} ({NAMESPACE_NAME_LABEL}={_DNS_NAMESPACE}) with these ports"
            )
            if len(policies) > 1:
                message += f" (isolated by {', '.join(str(policy.ref) for policy in policies)})"
            yield Finding(policies[0].ref, "egress-without-dns", "spec.egress", message)


def _senders(cluster: Cluster) -> dict[LabelSet, str]:
    """The label sets to look at, each with a name for messages."""
    found: dict[LabelSet, str] = {}
    for pod in pods(cluster):
        found.setdefault(pod.labels, str(pod))
    for policy in cluster.policies:
        if not subjects(policy, cluster):
            # The input has policies without their pods: use a pod that the selector describes.
            typical = LabelSet.of(policy.namespace, dict(_typical(policy)))
            if matches(policy.selector, typical.mapping):
                name = f"a pod with {policy.selector}" if typical.labels else "a pod without labels"
                found.setdefault(typical, name)
    return found


def dns_server_isolated(cluster: Cluster) -> Iterator[Finding]:
    """The cluster's DNS servers are isolated for ingress, and a pod cannot ask them."""
    evaluator = Evaluator.of(cluster)
    seen: set[tuple[PolicyRef, str]] = set()
    for server in pods(cluster):
        policies = evaluator.isolating(server.labels, Direction.INGRESS)
        if not _is_cluster_dns(server):
            continue
        destination = Party.of(server, next(iter(server.ips), None))
        clients = [Party.of(pod, next(iter(pod.ips), None)) for pod in pods(cluster) if pod.workload != server.workload]
        missing = {
            traffic: cut
            for traffic in _DNS
            if (cut := [c.name for c in (*clients, _STRANGER) if not _hears(evaluator, c, destination, traffic)])
        }
        denied = [
            rule
            for traffic in missing
            for client in (*clients, _STRANGER)
            for rule in evaluator.verdict(client, destination, traffic).ingress.denied_by
        ]
        owners = [rule.owner for rule in denied] + [policy.ref for policy in policies]
        if missing and (owners[0], server.workload) not in seen:
            seen.add((owners[0], server.workload))
            what = " and ".join(map(str, missing))
            message = (
                f"{server} answers the DNS questions of the cluster, and {some(next(iter(missing.values())))} cannot "
                f"reach it on {what}: add an ingress rule from namespaceSelector {{}} with 53/UDP and 53/TCP"
            )
            yield Finding(owners[0], "dns-server-isolated", "spec.ingress", message)


def _is_cluster_dns(pod: Pod) -> bool:
    serves = any(port.port == 53 and port.protocol is Protocol.UDP for port in pod.ports)
    return serves and (pod.namespace == _DNS_NAMESPACE or pod.labels.mapping.get("k8s-app") == "kube-dns")


def _hears(evaluator: Evaluator, client: Party, server: Party, traffic: Traffic) -> bool:
    return evaluator.verdict(client, server, traffic).ingress.allowed


def kubelet_out_of_reach(cluster: Cluster) -> Iterator[Finding]:
    """metrics-server is isolated for egress and cannot ask the kubelet of a node. Its own node is always allowed, so in
    a cluster of one node this goes unnoticed."""
    evaluator = Evaluator.of(cluster)
    for pod in pods(cluster):
        labels = pod.labels.mapping
        if _METRICS_SERVER not in (labels.get("k8s-app"), labels.get("app.kubernetes.io/name"), pod.workload):
            continue
        policies = evaluator.isolating(pod.labels, Direction.EGRESS)
        source = Party.of(pod, next(iter(pod.ips), None))
        cut = [
            node.name
            for node in cluster.nodes
            for address in node.addresses
            if not evaluator.verdict(source, Party(node.name, None, address, node.name, True), _KUBELET).egress.allowed
        ]
        if policies and cut:
            message = (
                f"{pod} asks the kubelets, and no egress rule allows {_KUBELET} to the nodes {some(cut)}: add an "
                "egress rule with ipBlocks of the nodes and this port"
            )
            yield Finding(policies[0].ref, "kubelet-out-of-reach", "spec.egress", message)


def _typical(policy: NetworkPolicy) -> Iterator[tuple[str, str]]:
    for requirement in policy.selector.requirements:
        if requirement.operator in (Operator.IN, Operator.EXISTS):
            yield requirement.key, requirement.values[0] if requirement.values else ""


def _listens(pod: Pod, traffic: Traffic) -> bool:
    return any(port.port == traffic.port and port.protocol is traffic.protocol for port in pod.ports)


def _may_ask(
    evaluator: Evaluator, subject: LabelSet, traffic: Traffic, servers: Sequence[Pod], cluster: Cluster
) -> bool:
    """True if pods with these labels may ask a DNS server, or one that may exist if the input has none."""
    if servers:
        return any(_egress(evaluator, subject, server, traffic).allowed for server in servers)
    policies = evaluator.isolating(subject, Direction.EGRESS)
    return not policies or _may_send(evaluator, policies, traffic, servers, cluster)


def _egress(evaluator: Evaluator, subject: LabelSet, server: Pod, traffic: Traffic) -> DirectionVerdict:
    return evaluator.verdict(Party("", subject), Party.of(server, next(iter(server.ips), None)), traffic).egress


def _denied(
    evaluator: Evaluator, subject: LabelSet, missing: Iterable[Traffic], servers: Mapping[Traffic, Sequence[Pod]]
) -> RuleRef | None:
    """The rule of a ClusterNetworkPolicy because of which DNS cannot be asked."""
    found = (_egress(evaluator, subject, server, traffic) for traffic in missing for server in servers[traffic])
    return next((rule for verdict in found for rule in verdict.denied_by), None)


def _may_send(
    evaluator: Evaluator,
    policies: Iterable[NetworkPolicy],
    traffic: Traffic,
    servers: Sequence[Pod],
    cluster: Cluster,
) -> bool:
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
    return evaluator.matcher.rule_is_about(policy.namespace, rule, party)


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
