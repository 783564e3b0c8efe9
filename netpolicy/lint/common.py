"""What all checks use: the finding, and the parts of policies with the pods that they select."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from netpolicy.cluster import Cluster, Pod
from netpolicy.selectors import matches, peer_selects
from netpolicy.types import Direction, NetworkPolicy, Peer, PolicyRef, Rule

SIDE = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake. `check` is its short name, `field` its place in the policy, `message` a sentence that ends with what
    to do."""

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


def pods(cluster: Cluster) -> list[Pod]:
    """The pods that policy can select."""
    return [pod for pod in cluster.pods if not pod.host_network]


def subjects(policy: NetworkPolicy, cluster: Cluster) -> list[Pod]:
    return [
        pod
        for pod in pods(cluster)
        if pod.namespace == policy.namespace and matches(policy.selector, pod.labels.mapping)
    ]


def peer_pods(policy: NetworkPolicy, rule: Rule, cluster: Cluster) -> list[Pod]:
    return [
        pod
        for pod in pods(cluster)
        if not rule.peers
        or any(
            peer_selects(peer, policy.namespace, pod.labels, cluster.namespaces)
            or (peer.block is not None and any(address in peer.block for address in pod.ips))
            for peer in rule.peers
        )
    ]


def rules(policy: NetworkPolicy) -> Iterator[tuple[Direction, int, Rule]]:
    for direction in Direction:
        for index, rule in enumerate(policy.rules(direction)):
            yield direction, index, rule


def peers(policy: NetworkPolicy) -> Iterator[tuple[Direction, int, int, Peer]]:
    for direction, index, rule in rules(policy):
        for place, peer in enumerate(rule.peers):
            yield direction, index, place, peer


def some(names: Iterable[object]) -> str:
    """At most three names, sorted."""
    found = sorted({str(name) for name in names})
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
