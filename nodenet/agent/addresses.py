"""This node's own addresses: what the kernel says of them, and what ADDs have just made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nodenet.errors import NodenetError
from nodenet.link.addresses import changes as address_changes
from nodenet.model import IPAddress

log = logging.getLogger(__name__)

# Seconds between looks when the kernel tells of no change, and after it did: several come together.
LOOK_SECONDS = 30.0
SETTLE_SECONDS = 0.05
# A look at thousands of addresses takes tens of ms. The pause after one is so many times as long: while they change all
# the time, looking takes a tenth of the time at most.
_PAUSE = 9


class OwnAddresses:
    """`read` asks the kernel; `tell` is called with all of them at each change. In the event loop."""

    def __init__(
        self,
        read: Callable[[], Awaitable[frozenset[IPAddress]]],
        tell: Callable[[frozenset[IPAddress]], None],
    ) -> None:
        self.known: frozenset[IPAddress] = frozenset()
        self._read = read
        self._tell = tell

    def gained(self, addresses: frozenset[IPAddress]) -> None:
        """An ADD has seen to it that the node has these."""
        if not addresses <= self.known:
            self._know(self.known | addresses)

    async def look(self) -> None:
        """Know what the kernel knows. Raises what `read` does."""
        while True:
            before = self.known
            found = await self._read()
            # What an ADD made meanwhile may be missing in it.
            if self.known is before:
                break
        if found != before:
            self._know(found)

    def _know(self, addresses: frozenset[IPAddress]) -> None:
        self.known = addresses
        self._tell(addresses)

    async def keep(self) -> None:
        """For ever: an address that the node gives up must not stay the host's, for another machine may get it."""
        told = asyncio.Event()
        changes = address_changes()
        event_loop = asyncio.get_running_loop()

        def note() -> None:
            changes.drain()
            told.set()

        event_loop.add_reader(changes.fd, note)
        try:
            while True:
                started = time.monotonic()
                try:
                    await self.look()
                except (NodenetError, OSError) as error:
                    log.warning("this node's addresses could not be read: %s", error)
                pause = max(SETTLE_SECONDS, _PAUSE * (time.monotonic() - started))
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await told.wait()
                await asyncio.sleep(pause)
                told.clear()
        finally:
            event_loop.remove_reader(changes.fd)
            changes.close()
