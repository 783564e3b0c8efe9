"""The policies of one Snapshot: NetworkPolicies, and ClusterNetworkPolicies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from netpolicy.nodes import selects_nodes, with_addresses
from netpolicy.types import ClusterPolicy, NetworkPolicy, Policy
from nodenet.evolved import changed_keys
from nodenet.model import Node, ObjectRef

_NONE: Mapping[Any, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class PolicySet:
    """`own`: NetworkPolicies by namespace and name. `wide`: ClusterNetworkPolicies by "" and name."""

    own: Mapping[Any, NetworkPolicy] = field(default_factory=lambda: _NONE)
    wide: Mapping[Any, ClusterPolicy] = field(default_factory=lambda: _NONE)

    def get(self, ref: tuple[str, str]) -> Policy | None:
        key = ObjectRef(*ref)
        return self.own.get(key) if key.namespace else self.wide.get(key)

    def values(self) -> Iterator[Policy]:
        return chain(self.own.values(), self.wide.values())

    def is_same(self, other: PolicySet) -> bool:
        return self.own is other.own and self.wide is other.wide

    def changed(self, before: PolicySet) -> list[tuple[str, str]]:
        """The keys of policies that differ from `before`."""
        return [*changed_keys(before.own, self.own), *changed_keys(before.wide, self.wide)]

    def __bool__(self) -> bool:
        return bool(self.own) or bool(self.wide)


def with_nodes(
    policies: Mapping[ObjectRef, ClusterPolicy], nodes: Mapping[ObjectRef, Node]
) -> Mapping[ObjectRef, ClusterPolicy]:
    """The policies with addresses in place of peers that select nodes. Returns `policies` itself if there are none."""
    if not any(selects_nodes(policy) for policy in policies.values()):
        return policies
    return {ref: with_addresses(policy, nodes.values()) for ref, policy in policies.items()}
