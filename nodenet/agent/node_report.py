"""Tells the API that this node's network works: removes the taint that keeps pods away until then, and sets the Node
condition NetworkUnavailable to False, which cloud providers set to True for a new node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from nodenet import kinds
from nodenet.kube.retry import Outcome
from nodenet.kube.writer import Object, PatchType, Target
from nodenet.model import Node, ObjectRef
from nodenet.pulse import any_of

log = logging.getLogger(__name__)

# A Node is registered with this taint (kubelet: --register-with-taints), so that no pod comes before the agent.
TAINT = "node.nodenet.io/agent-not-ready"
CONDITION = "NetworkUnavailable"
REASON = "NodenetIsUp"
# Seconds until a write that failed is made again, although the Node has not changed.
RETRY_SECONDS = 60.0
# Seconds after a write until the watch has normally brought it.
SETTLE_SECONDS = 2.0


class Writer(Protocol):
    """The methods of nodenet.kube.writer.KubeWriter that are used here."""

    async def patch(self, target: Target, body: Object, kind: PatchType) -> Outcome: ...

    async def change(self, target: Target, change: Callable[[Object], Object | None]) -> Outcome: ...


class NodeReport:
    """Writes only if the Node shows that it is needed, so an agent that starts again writes nothing."""

    def __init__(
        self,
        name: str,
        writer: Writer,
        node: Callable[[], Node | None],
        changed: Callable[[], asyncio.Event],
        *,
        retry_seconds: float = RETRY_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._ref = ObjectRef("", name)
        self._writer = writer
        self._node = node
        self._changed = changed
        self._retry_seconds = retry_seconds
        self._settle_seconds = settle_seconds

    async def keep(self, ready: asyncio.Event) -> None:
        """Report until cancelled, from the time when `ready` is set. A Node that is created again is reported again."""
        await ready.wait()
        while True:
            event = self._changed()
            node = self._node()
            if node is None or not self.needs(node):
                await event.wait()
            elif await self.report(node):
                # The Node comes back by the watch, once for each write. Before the last one it shows an old state.
                await event.wait()
                await asyncio.sleep(self._settle_seconds)
            else:
                await any_of([event], self._retry_seconds)

    @staticmethod
    def needs(node: Node) -> bool:
        """Whether a Node shows that a write is needed."""
        return TAINT in node.taints or node.network_unavailable != "False"

    async def report(self, node: Node) -> bool:
        """Make the writes that this Node needs. Returns False if one failed."""
        outcomes = []
        if TAINT in node.taints:
            outcomes.append(await self._writer.change(Target(kinds.NODE.resource, self._ref), without_taint))
        if node.network_unavailable != "False":
            target = Target(kinds.NODE.resource, self._ref, "status")
            outcomes.append(await self._writer.patch(target, condition(datetime.now(UTC)), PatchType.STRATEGIC))
        if outcomes and all(outcome is Outcome.DONE for outcome in outcomes):
            log.info("node %s: reported that its network works", self._ref)
        return all(outcome in (Outcome.DONE, Outcome.GONE) for outcome in outcomes)


def without_taint(node: Object) -> Object | None:
    """The change that removes our taint from a Node; None if it is not there. Pure."""
    spec = node.get("spec") or {}
    taints = spec.get("taints") or []
    kept = [taint for taint in taints if taint.get("key") != TAINT]
    return {"spec": {"taints": kept or None}} if len(kept) < len(taints) else None


def condition(now: datetime) -> Mapping[str, Any]:
    """The patch that sets the condition. Pure."""
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {
        "type": CONDITION,
        "status": "False",
        "reason": REASON,
        "message": "nodenet is running on this node",
        "lastHeartbeatTime": time,
        "lastTransitionTime": time,
    }
    return {"status": {"conditions": [body]}}
