"""Finds common mistakes in policies: valid objects that probably do not do what their author intended.

Checks that need pods run only if the input has pods, and checks of addresses only if an address is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from netpolicy.cluster import Cluster
from netpolicy.lint import blocks, paths, ports, selection, tiers, width
from netpolicy.lint.common import Finding
from netpolicy.types import NetworkPolicy

__all__ = ["Finding", "lint"]

Check = Callable[[NetworkPolicy, Cluster], Iterator[Finding]]
_CHECKS: tuple[Check, ...] = (
    selection.selects_nothing,
    selection.namespace_label_missing,
    selection.peer_selects_nothing,
    ports.named_port_missing,
    ports.port_of_service,
    blocks.except_without_effect,
    width.wide_rule,
    width.isolates_others,
    width.ignored_rules,
    width.unreadable,
)
# Checks that need the address of every pod.
_ADDRESS_CHECKS: tuple[Check, ...] = (blocks.block_covers_pods, blocks.block_of_services)


def lint(cluster: Cluster) -> list[Finding]:
    """All findings, sorted by policy and field. Dormant pods are included, because a policy may be intended for
    them."""
    every = replace(cluster, pods=cluster.pods + cluster.dormant)
    # Replicas with the same labels and ports are one to a selector, and clusters have many.
    kinds = {(pod.labels, pod.ports, pod.workload, pod.host_network): pod for pod in reversed(every.pods)}
    distinct = replace(every, pods=tuple(reversed(kinds.values())))
    found = [
        finding
        for policy in sorted(cluster.policies, key=lambda p: p.ref)
        for checks, given in ((_CHECKS, distinct), (_ADDRESS_CHECKS, every))
        for check in checks
        for finding in check(policy, given)
    ]
    found += paths.egress_without_dns(distinct)
    found += paths.dns_server_isolated(distinct)
    found += paths.kubelet_out_of_reach(distinct)
    found += tiers.checks(distinct)
    return sorted(set(found), key=lambda f: (f.policy, f.field, f.check, f.message))
