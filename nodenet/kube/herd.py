"""Keeps the agents of a large cluster from asking the API server all at the same moment.

They would do so after a rollout (first lists), after the API servers started again (new lists, because the old
resourceVersions are gone) and during an outage (retries). The window grows with the number of nodes: on a small cluster
nothing waits. A new node does not wait either: it comes by itself, and has no rules until its first lists have arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from nodenet.kinds import NODE
from nodenet.kube.protocol import ListPage
from nodenet.kube.session import AnswerError, Session
from nodenet.store import Delta, Listing, Removal, StoreEvent

log = logging.getLogger(__name__)

# The first requests of all agents are spread so that 500 agents begin in a second.
SECONDS_PER_NODE = 0.002
# The file in the agent's run_dir.
NODES_FILE = "node-count"
# The longest window. The rules of the agent's last life stay in force while it waits.
LONGEST_SECONDS = 30.0


def window(nodes: int) -> float:
    """Seconds over which the agents of so many nodes spread their lists. 0 for one node."""
    return min(SECONDS_PER_NODE * (nodes - 1), LONGEST_SECONDS) if nodes > 0 else 0.0


class Herd:
    """Chooses when this agent sends a list. `spread` returns a random number from 0 to 1. `file` holds the number of
    nodes for the agent's next life, until the machine starts again; None: it starts as on a new node."""

    def __init__(
        self,
        session: Session,
        sleep: Callable[[float], Awaitable[None]],
        spread: Callable[[], float],
        file: Path | None = None,
    ) -> None:
        self.sleep = sleep
        self._session = session
        self._spread = spread
        self._file = file
        self._started = False
        self._starting = asyncio.Lock()
        # A first list failed while the number of nodes was unknown: this is an outage, with other agents waiting too.
        self._outage = False
        self._names: set[str] = set()
        # The number of nodes, as far as known, and that in the file.
        self.nodes = self._written = _remembered(file) if file else 0

    async def before_first_list(self) -> None:
        """Wait once for the moment of this agent's first lists. The watches of all kinds wait for the same moment.

        The number of nodes is that of the last life: to ask for it would be a request of all agents at the same moment.
        Only in an outage it is asked for. Raises network errors if no server can be reached: then ask again.
        """
        async with self._starting:
            if self._started:
                return
            if self._outage and not self.nodes:
                self.nodes = await self._count_nodes()
            await self._wait()
            self._started = True

    def first_list_failed(self) -> bool:
        """No server could answer the first list. Returns whether the next attempt waits for its moment too: after a
        power failure all agents start without a number of nodes, and meet when the API servers are back."""
        if self.nodes:
            return False
        self._outage = True
        self._started = False
        return True

    async def before_new_list(self) -> None:
        """Wait for a moment of the window: a resourceVersion that is gone is probably gone for all agents."""
        await self._wait()

    def record(self, event: StoreEvent) -> None:
        """An event of the kind Node."""
        if isinstance(event, Listing):
            self._names = {NODE.key(obj)[1] for obj in event.objects} | {name for _, name in event.keep}
        elif isinstance(event, Delta):
            self._names.add(NODE.key(event.obj)[1])
        elif isinstance(event, Removal):
            self._names.discard(event.key[1])
        self.nodes = len(self._names)
        if self._file and abs(self.nodes - self._written) > self._written / 10:
            self._remember(self._file)

    def _remember(self, file: Path) -> None:
        self._written = self.nodes
        try:
            new = file.with_name(f".{file.name}.new")
            new.write_text(f"{self.nodes}\n")
            new.replace(file)
        except OSError as error:
            log.warning("%s: the number of nodes cannot be kept: %s", file, error)

    async def _wait(self) -> None:
        seconds = window(self.nodes) * self._spread()
        if seconds > 0:
            await self.sleep(seconds)

    async def _count_nodes(self) -> int:
        """Asks for one Node. The server adds how many more there are, which costs it little. With resourceVersion=0 it
        would ignore the limit and send all Nodes."""
        try:
            async with self._session.get(NODE.resource.path(), {"limit": "1"}) as response:
                page = msgspec.json.decode(await response.read(), type=ListPage)
        except AnswerError as error:
            if error.code not in (403, 404):
                raise
            # Without the permission the size is unknown.
            return 0
        return len(page.items or ()) + (page.metadata.remaining_item_count or 0)


def _remembered(file: Path) -> int:
    """The number in the file; 0 if there is none. The file is only a hint."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        log.warning("%s: %s: the number of nodes is unknown", file, error)
        return 0
    if not text.strip().isdecimal():
        log.warning("%s: expected a number, got %.20r: the number of nodes is unknown", file, text)
        return 0
    # More digits than a number of nodes has would be slow to convert.
    return int(text.strip()[:9])
