"""Keeps the agents of a large cluster from asking the API server all at the same moment.

They would do so after a rollout or a power failure (first lists), after the API servers started again (new lists,
because the old resourceVersions are gone) and during an outage (retries). The window grows with the number of nodes: on
a small cluster nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from nodenet.kinds import NODE
from nodenet.kube.protocol import ListPage
from nodenet.kube.session import AnswerError, Session

# The first requests of all agents are spread so that 500 agents begin in a second.
SECONDS_PER_NODE = 0.002
# The longest window. The rules of the agent's last life stay in force while it waits, but a new node is not ready.
LONGEST_SECONDS = 30.0


def window(nodes: int) -> float:
    """Seconds over which the agents of so many nodes spread their lists. 0 for one node."""
    return min(SECONDS_PER_NODE * (nodes - 1), LONGEST_SECONDS) if nodes > 0 else 0.0


class Herd:
    """Chooses when this agent sends a list. `spread` returns a random number from 0 to 1."""

    def __init__(
        self, session: Session, sleep: Callable[[float], Awaitable[None]], spread: Callable[[], float]
    ) -> None:
        self.sleep = sleep
        self._session = session
        self._spread = spread
        self._started = False
        self._starting = asyncio.Lock()
        # The number of nodes, as far as known.
        self.nodes = 0

    async def before_first_list(self) -> None:
        """Wait once for the moment of this agent's first lists. The watches of all kinds wait for the same moment.
        Raises network errors if no server can be reached: then ask again."""
        async with self._starting:
            if self._started:
                return
            self.nodes = await self._count_nodes()
            await self._wait()
            self._started = True

    async def before_new_list(self) -> None:
        """Wait for a moment of the window: a resourceVersion that is gone is probably gone for all agents."""
        await self._wait()

    async def _wait(self) -> None:
        seconds = window(self.nodes) * self._spread()
        if seconds > 0:
            await self.sleep(seconds)

    async def _count_nodes(self) -> int:
        """Asks for one Node. The server adds how many more there are, which costs it little."""
        try:
            async with self._session.get(NODE.resource.path(), {"limit": "1"}) as response:
                page = msgspec.json.decode(await response.read(), type=ListPage)
        except AnswerError as error:
            if error.code not in (403, 404):
                raise
            # Without the permission the size is unknown.
            return 0
        return len(page.items or ()) + (page.metadata.remaining_item_count or 0)
