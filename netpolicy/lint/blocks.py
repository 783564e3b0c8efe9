"""ipBlocks of addresses that policy does not see, and excepts that another rule undoes."""

from __future__ import annotations

from collections.abc import Iterator

from netpolicy.cluster import Cluster, Service
from netpolicy.lint.common import SIDE, Finding, peers, pods, rules, some, subjects
from netpolicy.types import IPBlock, IPNetwork, NetworkPolicy, Rule, RuleRef

# The shortest prefixes that a network of Services usually has. A wider block is meant for more than Services.
_SERVICE_NETWORK = {4: 12, 6: 64}


def block_covers_pods(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    for direction, index, place, peer in peers(policy):
        block = peer.block
        if block is None:
            continue
        field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].ipBlock"
        covered = [pod for pod in pods(cluster) if any(address in block for address in pod.ips)]
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


def block_of_services(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """Policy sees the address behind a Service: a ClusterIP is never the source or the destination."""
    for direction, index, place, peer in peers(policy):
        block = peer.block
        if block is None or block.cidr.prefixlen < _SERVICE_NETWORK[block.cidr.version]:
            continue
        found = [service for service in cluster.services if any(address in block for address in service.cluster_ips)]
        others = [*(ip for pod in cluster.pods for ip in pod.ips), *(ip for n in cluster.nodes for ip in n.addresses)]
        if not found or any(address in block for address in others):
            continue
        field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].ipBlock"
        message = (
            f"{block} is the address of {some(found)}, and policy sees the address behind a Service: this never "
            f"matches; {_instead(found[0])}"
        )
        yield Finding(policy.ref, "block-of-service", field, message)


def _instead(service: Service) -> str:
    if service.selector is not None:
        return f"select the pods behind it ({service.selector} in namespace {service.namespace}), with their own port"
    return (
        "use the addresses of its endpoints: kubectl get endpointslices "
        f"-n {service.namespace} -l kubernetes.io/service-name={service.name}"
    )


def except_without_effect(policy: NetworkPolicy, cluster: Cluster) -> Iterator[Finding]:
    """Rules only add: what one excludes with except, a wider one may allow."""
    for direction, index, place, peer in peers(policy):
        block = peer.block
        for number, hole in enumerate(block.excepts if block is not None else ()):
            own = policy.rules(direction)[index]
            ref = policy.rule_ref(direction, index)
            undone = next(_undoing(policy, ref, own, hole, cluster), None)
            if undone is None:
                continue
            field = f"spec.{direction}[{index}].{SIDE[direction]}[{place}].ipBlock.except[{number}]"
            message = (
                f"{hole} is excluded here, but {undone} allows it for the same pods, and rules only add: put the "
                "except there too"
            )
            yield Finding(policy.ref, "except-without-effect", field, message)


def _undoing(policy: NetworkPolicy, own: RuleRef, rule: Rule, hole: IPNetwork, cluster: Cluster) -> Iterator[RuleRef]:
    """Rules that allow a wider network with the hole in it, on the same ports, for a pod that the policy selects. A
    rule for exactly the hole is an exception on purpose."""
    for other in cluster.policies:
        if other.namespace != policy.namespace or not _same_subjects(policy, other, cluster):
            continue
        for direction, index, found in rules(other):
            ref = other.rule_ref(direction, index)
            if direction is own.direction and _ports_cover(found, rule) and _covers(found, hole):
                yield ref


def _same_subjects(policy: NetworkPolicy, other: NetworkPolicy, cluster: Cluster) -> bool:
    if other.ref == policy.ref or not other.selector.requirements or other.selector == policy.selector:
        return True
    return bool({str(pod) for pod in subjects(policy, cluster)} & {str(pod) for pod in subjects(other, cluster)})


def _ports_cover(found: Rule, rule: Rule) -> bool:
    return not found.ports or (bool(rule.ports) and set(rule.ports) <= set(found.ports))


def _covers(found: Rule, hole: IPNetwork) -> bool:
    return not found.peers or any(peer.block is not None and _is_wider(peer.block, hole) for peer in found.peers)


def _is_wider(block: IPBlock, hole: IPNetwork) -> bool:
    if block.cidr.version != hole.version or block.cidr.prefixlen >= hole.prefixlen:
        return False
    return hole.network_address in block
