"""Compiles NetworkPolicies and ClusterNetworkPolicies into nn_policy, nn_cidr, identities and isolation flags.

Entries are keyed by identity, so another pod with a known label set changes nothing. There are entries only for this
node's pods, but regions for the ipBlocks of all policies: when a pod's labels change and other policies select it, the
region numbers of its peers' addresses must stay the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nodenet.compile.identities import distinguishing_labels
from nodenet.compile.ids import Ids
from nodenet.compile.policy_set import PolicySet
from nodenet.compile.policy_state import PolicyState
from nodenet.compile.policy_tables import PolicyTables
from nodenet.compile.shares import DEFAULT_ROOM, Room
from nodenet.model import Labels, ObjectRef, Pod

__all__ = ["PolicyCompiler", "PolicyTables"]


class PolicyCompiler:
    """Compiles the policies of one Snapshot after the other. A table that did not change is the same object as in the
    previous result; the others are evolved from it (nodenet.evolved) or new."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._known: PolicyState | None = None

    def compile(
        self,
        pods: Mapping[ObjectRef, Pod],
        namespaces: Mapping[str, Labels],
        policies: PolicySet,
        local: Collection[ObjectRef],
        room: Room = DEFAULT_ROOM,
        enforce: bool = True,
    ) -> PolicyTables:
        """Compile for the node whose endpoints belong to the pods `local` (names that are not in `pods` are ignored).

        `enforce` False: only identities; no pod is isolated. Raises OverflowError if a space of numbers is full; the
        next compilation then starts from an empty state.
        """
        known, self._known = self._known, None
        # None: the policies did not change, and neither did the labels that they use.
        distinguishing = None
        if known is None or not policies.is_same(known.policies):
            distinguishing = distinguishing_labels(policies.values())
        if (
            known is None
            or (known.enforce, known.room) != (enforce, room)
            or distinguishing not in (None, known.identities.distinguishing)
        ):
            # The labels that count are part of every identity: compile everything again.
            known = PolicyState(self._ids, distinguishing or distinguishing_labels(policies.values()), room, enforce)
        known.update(pods, namespaces, policies, local)
        self._known = known
        return known.tables
