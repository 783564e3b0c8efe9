"""Events about API objects, for `kubectl get events`: a NetworkPolicy whose rules have no room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from netpolicy.types import PolicyRef
from nodenet.compile.shares import LeftOut
from nodenet.kube.correlate import About, Notice
from nodenet.kube.events import EventRecorder
from nodenet.kube.writer import KubeWriter

COMPONENT = "nodenet-agent"
NO_ROOM, HAS_ROOM = "RulesLeftOut", "RulesInForce"


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


class Notices:
    """Sends the agent's Events. An API server that does not allow them is named once in the log, and by
    KubeWriter.problems."""

    def __init__(self, writer: KubeWriter, node_name: str) -> None:
        self._recorder = EventRecorder(writer, COMPONENT, node_name)
        self.policies = PolicyNotices(self._recorder.record)

    async def run(self) -> None:
        """Send Events until cancelled. Errors of the server do not end it."""
        await self._recorder.run()

    async def sent(self) -> None:
        """Wait until everything that was recorded has been sent."""
        await self._recorder.flush()


def _about(policy: PolicyRef) -> About:
    return About("networking.k8s.io/v1", "NetworkPolicy", policy.namespace, policy.name)
