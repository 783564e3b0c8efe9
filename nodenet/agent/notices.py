"""Events about API objects, for `kubectl get events`: objects that are not enforced or not served completely.

A NetworkPolicy without room is a matter of one node, so each node reports it; so is a hostPort. An object that cannot
be read, or a Service of which a part is not served, is the same on every node: one node reports it, which all choose by
the same rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

from netpolicy.parse_cluster import NOT_ENFORCED as DOMAIN_NAMES
from netpolicy.types import PolicyRef
from nodenet.agent.reporters import Reporters, reporting_nodes
from nodenet.compile.shares import LeftOut
from nodenet.compile.state import ServiceWarning
from nodenet.engine import Engine
from nodenet.kinds import BY_NAME, CLUSTER_NETWORK_POLICY, NETWORK_POLICY, POD, ApiKind
from nodenet.kube.correlate import NODE_SECONDS, About, Notice
from nodenet.kube.events import EventRecorder
from nodenet.kube.health import KindStats
from nodenet.kube.writer import KubeWriter
from nodenet.model import ObjectRef

COMPONENT = "nodenet-agent"
NO_ROOM, HAS_ROOM = "RulesLeftOut", "RulesInForce"
UNREADABLE, NOT_SERVED, NOT_ENFORCED = "NotReadable", "NotServed", "NotEnforced"
# Seconds between two looks at the objects with problems. Normally there are none.
OBJECT_SECONDS = 5.0
# The largest number of notices after one look: as many as the node's budget gets in this time.
MOST_AT_ONCE = int(OBJECT_SECONDS / NODE_SECONDS)

_Found = Mapping[About, tuple[str, str]]


class PolicyNotices:
    """One notice when the rules of a policy are left out, and one when they are in force again. Like the log
    (nodenet/engine.py), it does not repeat a notice when only the numbers change."""

    def __init__(self, record: Callable[[Notice], None]) -> None:
        self._record = record
        self._reported: Sequence[LeftOut] = ()
        self._known: Mapping[PolicyRef, LeftOut] = {}

    def update(self, left_out: Sequence[LeftOut], exists: Callable[[PolicyRef], bool]) -> None:
        """`left_out`: of the last compilation. `exists`: whether the API has the policy: one that was deleted needs no
        notice."""
        if left_out is self._reported:
            return
        self._reported = left_out
        before, self._known = self._known, {one.policy: one for one in left_out}
        for policy in sorted(self._known.keys() - before.keys()):
            self._record(Notice(_about(policy), "Warning", NO_ROOM, str(self._known[policy])))
        for policy in sorted(before.keys() - self._known.keys()):
            if exists(policy):
                self._record(Notice(_about(policy), "Normal", HAS_ROOM, "its rules have room now and are in force"))


class ObjectNotices:
    """Notices about problems that are the same on every node: one when the message of an object is new or changes.

    Few at once: a node has a budget of Events (correlate.py), and what exceeds it would be lost.
    """

    def __init__(self, node_name: str, record: Callable[[Notice], None]) -> None:
        self._node_name = node_name
        self._record = record
        self._reporters = Reporters()
        # What was reported, by this node or by another one.
        self._known: dict[About, tuple[str, str]] = {}
        # The objects of this node that have changed, the oldest change first: one that changes in every round must not
        # keep the others waiting.
        self._waiting: dict[About, None] = {}

    def update(self, found: Mapping[About, tuple[str, str]], nodes: Collection[str]) -> None:
        """One round. `found`: reason and message by object. `nodes`: the names of the nodes that report."""
        self._reporters = self._reporters.among(nodes)
        self._known = {about: what for about, what in self._known.items() if about in found}
        for about, what in found.items():
            # Nearly all are known: compare first.
            if self._known.get(about) == what:
                continue
            if self._is_ours(about, what[0]):
                self._waiting.setdefault(about)
            else:
                self._known[about] = what
        self._waiting = {about: None for about in self._waiting if self._known.get(about) != found.get(about)}
        for about in list(islice(self._waiting, MOST_AT_ONCE)):
            del self._waiting[about]
            self._known[about] = found[about]
            self._record(Notice(about, "Warning", *found[about]))

    def _is_ours(self, about: About, reason: str) -> bool:
        # Only its own node knows which hostPorts of a pod are not served.
        return (about.kind, reason) == (POD.name, NOT_SERVED) or self._reporters.of(about) == self._node_name


def objects_with_problems(stats: Mapping[ApiKind, KindStats], warnings: Iterable[ServiceWarning]) -> _Found:
    """Reason and message of each object that cannot be read, or of which a part is not served."""
    found: dict[About, tuple[str, str]] = {}
    for kind, known in stats.items():
        for ref, parts in tuple(known.unread.items()):
            about = About(kind.resource.api_version, kind.name, ref.namespace, ref.name, known.uids.get(ref, ""))
            # A ClusterNetworkPolicy may have parts that can be read and are not enforced.
            what = "not in force as it is written" if kind is CLUSTER_NETWORK_POLICY else "could not be read"
            reason = NOT_ENFORCED if all(DOMAIN_NAMES in part for part in parts) else UNREADABLE
            found[about] = (reason, f"{what}: " + "; ".join(parts))
    messages: dict[tuple[str, ObjectRef], list[str]] = {}
    for warning in warnings:
        messages.setdefault((warning.kind, warning.ref), []).append(warning.message)
    for (kind_name, ref), texts in messages.items():
        about = About(BY_NAME[kind_name].resource.api_version, kind_name, ref.namespace, ref.name)
        # The reasons of one Service are few: its ports. The Event's message has a limit of its own.
        found.setdefault(about, (NOT_SERVED, "; ".join(texts)))
    return found


class Notices:
    """Sends the agent's Events. An API server that does not allow them is named once in the log, and by
    KubeWriter.problems."""

    def __init__(self, writer: KubeWriter, node_name: str) -> None:
        self._recorder = EventRecorder(writer, COMPONENT, node_name)
        self.policies = PolicyNotices(self._recorder.record)
        self._objects = ObjectNotices(node_name, self._recorder.record)

    async def run(self) -> None:
        """Send Events until cancelled. Errors of the server do not end it."""
        await self._recorder.run()

    async def watch_objects(self, stats: Mapping[ApiKind, KindStats], engine: Engine) -> None:
        """Record notices about objects until cancelled. Starts after the first sync, when all Nodes are known."""
        await engine.in_force()
        while True:
            current = engine.current
            nodes = reporting_nodes(current.snapshot.nodes.values())
            self._objects.update(objects_with_problems(stats, current.names.warnings), nodes)
            await asyncio.sleep(OBJECT_SECONDS)

    async def sent(self) -> None:
        """Wait until everything that was recorded has been sent."""
        await self._recorder.flush()


def _about(policy: PolicyRef) -> About:
    resource = (NETWORK_POLICY if policy.namespace else CLUSTER_NETWORK_POLICY).resource
    return About(resource.api_version, resource.kind, policy.namespace, policy.name)
