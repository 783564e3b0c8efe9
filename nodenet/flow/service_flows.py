"""Counts the flows to each Service from the events that flows are made of. Pure.

The programs send these events anyway, so a packet costs nothing more. Without `flow_events` only drops are known, and
events that the kernel had no room for are missing (docs/decisions/0056-what-people-see-of-services.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from nodenet.abi import CtStatus, Event, EventType, ObservationPoint
from nodenet.model import Direction

_SOCK, _POLICY_VERDICT, _TRACE = int(EventType.SOCK), int(EventType.POLICY_VERDICT), int(EventType.TRACE)
_FROM_NETWORK = int(ObservationPoint.FROM_NETWORK)
_NEW, _EGRESS = int(CtStatus.NEW), int(Direction.EGRESS)
# Numbers of deleted Services are forgotten when there are more than this.
_MOST = 4096


class ServiceFlows:
    """By service_id. `node_cookie`: that of the node's own network namespace; 0: not known, then calls of the node's
    processes are not counted."""

    def __init__(self, node_cookie: int) -> None:
        self._node_cookie = node_cookie
        # New flows of pods, and calls of the node's processes.
        self.opened: Counter[int] = Counter()
        # Their packets and calls that were dropped or refused.
        self.dropped: Counter[int] = Counter()
        # The same of traffic from outside.
        self.opened_outside: Counter[int] = Counter()
        self.dropped_outside: Counter[int] = Counter()

    def note(self, event: Event, known: Collection[int]) -> None:
        """Call it for events with a service_id. `known`: the numbers of the present Services.

        A flow has several events. The pod that calls sends one new packet; a packet that returns to its own pod is
        reported where it is delivered, and one from outside where it enters the node. The node's processes have no
        interface with our programs, so only their call is seen.
        """
        kind = event.type
        if event.reason:
            # A Service is translated where a packet leaves a pod, or where it enters the node.
            counts = self.dropped if event.direction == _EGRESS else self.dropped_outside
        elif kind == _SOCK:
            if event.cookie != self._node_cookie or not event.cookie:
                return
            counts = self.opened
        elif event.ct_status != _NEW or not (
            kind == _TRACE or (kind == _POLICY_VERDICT and event.direction == _EGRESS)
        ):
            return
        else:
            counts = self.opened_outside if kind == _TRACE and event.point == _FROM_NETWORK else self.opened
        counts[event.service_id] += 1
        if len(counts) > _MOST and len(counts) > 2 * len(known):
            for gone in counts.keys() - known:
                del counts[gone]
