"""The service peer.Peer: which nodes have an Observer. Hubble relay asks it of one node and then connects to all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from nodenet.rpc.call_limits import CallLimit
from nodenet.rpc.pb.peer import peer_pb2

_STREAMS = (16, 16)


class PeerSource(Protocol):
    """Implemented by the agent; called in the event loop."""

    def peers(self) -> Mapping[str, str]:
        """The address of the Observer of each node, by its name."""
        ...

    def next_change(self) -> asyncio.Event:
        """An event that is set when `peers` may have changed."""
        ...


class Peer:
    """One method per call of the service."""

    def __init__(self, source: PeerSource) -> None:
        self._source = source
        self._streams = CallLimit("Notify", *_STREAMS)

    async def Notify(self, _request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """All peers, then every change."""
        await self._streams.acquire(context)
        known: Mapping[str, str] = {}
        while True:
            # Before the read, so that no change is missed.
            change = self._source.next_change()
            current = dict(self._source.peers())
            for notification in changes(known, current):
                yield notification
            known = current
            await change.wait()


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Any]:
    """The notifications that lead from one state to another."""
    found = []
    for name, address in after.items():
        if before.get(name) != address:
            kind = peer_pb2.PEER_UPDATED if name in before else peer_pb2.PEER_ADDED
            found.append(peer_pb2.ChangeNotification(name=name, address=address, type=kind))
    gone = sorted(before.keys() - after.keys())
    found += [peer_pb2.ChangeNotification(name=name, address=before[name], type=peer_pb2.PEER_DELETED) for name in gone]
    return found
