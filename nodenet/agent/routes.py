"""Keeps the kernel's routes to the other nodes' pod networks equal to those that the API's Nodes require."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from nodenet.backoff import Backoff
from nodenet.errors import NodenetError
from nodenet.link.routes import SyncResult
from nodenet.model import IPAddress, IPNetwork, ObjectRef
from nodenet.pulse import Pulse, any_of
from nodenet.store import Snapshot

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0


class Wanted(NamedTuple):
    """`routes`: pod networks of other nodes, with the gateway of each. `own`: this node's addresses; the routes use the
    interface that has one of them."""

    routes: Mapping[IPNetwork, IPAddress]
    own: tuple[IPAddress, ...]


class RouteKeeper:
    """Updates the routes when the Nodes change, when `recheck` says that the kernel's may have changed, and every
    resync_seconds. Failures are retried with backoff. No Node object can end the agent."""

    def __init__(
        self,
        sync: Callable[[Mapping[IPNetwork, IPAddress], tuple[IPAddress, ...]], Awaitable[SyncResult]],
        resync_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A sentence for each route that could not be set.
        self.problems: list[str] = []
        self._sync = sync
        self._resync_seconds = resync_seconds
        self._clock = clock
        self._last: Wanted | None = None
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        self._due = 0.0
        self._disturbed = Pulse()

    async def keep(self, wanted: Callable[[], Wanted | None], changed: Callable[[], asyncio.Event]) -> None:
        """Update the routes until cancelled. `wanted` returns None until the Nodes are known. `changed` returns the
        event of the next change."""
        while True:
            events = (changed(), self._disturbed.next())
            now = wanted()
            if now is not None:
                await self.update(now)
            await any_of(events, max(0.0, self._due - self._clock()) if now else None)

    def recheck(self) -> None:
        """Compare the kernel's routes now: something there has changed."""
        self._due = 0.0
        self._disturbed.fire()

    async def update(self, wanted: Wanted) -> None:
        """Update the routes once. Does nothing if nothing changed and neither a retry nor a resync is due."""
        if wanted == self._last and self._clock() < self._due:
            return
        if wanted != self._last:
            self._backoff.reset()
        self._last = wanted
        problems = await self._try(wanted)
        for problem in problems:
            if problem not in self.problems:
                log.error("%s", problem)
        if self.problems and not problems:
            log.info("all routes to other nodes are in place")
        self.problems = problems
        if problems:
            self._due = self._clock() + min(self._backoff.next(), self._resync_seconds)
        else:
            self._backoff.reset()
            self._due = self._clock() + self._resync_seconds

    async def _try(self, wanted: Wanted) -> list[str]:
        try:
            result = await self._sync(wanted.routes, wanted.own)
        except (NodenetError, OSError) as error:
            return [f"routes to other nodes: {error}"]
        found = [f"route to {network}: {words}" for network, words in result.failed.items()]
        return found + [f"route to {network}: a route of another program is in the way" for network in result.conflicts]


def wanted_routes(snapshot: Snapshot, name: str) -> Wanted:
    """The routes that the node `name` needs: to the pod networks of all other nodes, each through the node's address of
    the same family."""
    own = snapshot.nodes.get(ObjectRef("", name))
    wanted: dict[IPNetwork, IPAddress] = {}
    for node in snapshot.nodes.values():
        if node.name == name:
            continue
        for network in node.pod_cidrs:
            gateway = next((a for a in node.addresses if a.version == network.version), None)
            if gateway is not None:
                wanted[network] = gateway
    return Wanted(wanted, own.addresses if own else ())
