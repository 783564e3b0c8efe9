"""Finds common mistakes in NetworkPolicies: valid objects that probably do not do what their author intended.

Checks that need pods run only if the input has pods, and checks of addresses only if an address is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from netpolicy.cluster import Cluster
from netpolicy.lint import blocks, paths, ports, selection, width
from netpolicy.lint.common import Finding
from netpolicy.types import NetworkPolicy

__all__ = ["Finding", "lint"]

_CHECKS: tuple[Callable[[NetworkPolicy, Cluster], Iterator[Finding]], ...] = (
    selection.selects_nothing,
    selection.namespace_label_missing,
    selection.peer_selects_nothing,
    ports.named_port_missing,
    ports.port_of_service,
    blocks.block_covers_pods,
    blocks.block_of_services,
    blocks.except_without_effect,
    width.wide_rule,
    width.isolates_others,
    width.ignored_rules,
    width.unreadable,
)


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
    found += paths.egress_without_dns(cluster)
    found += paths.dns_server_isolated(cluster)
    found += paths.kubelet_out_of_reach(cluster)
    return sorted(set(found), key=lambda f: (f.policy, f.field, f.check, f.message))
