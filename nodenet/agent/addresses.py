"""Tracks this node's own addresses: those that the kernel reports, and those that ADDs have just made."""

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

# Seconds between two reads without a notification of the kernel.
POLL_SECONDS = 30.0
# Seconds to wait after a notification, because several often come together.
SETTLE_SECONDS = 0.05
# Reading thousands of addresses takes tens of ms. The pause after a read is this many times as long as the read, so
# that reading takes at most a tenth of the time even if addresses change all the time.
_PAUSE = 9


class OwnAddresses:
    """`read` reads the addresses from the kernel. `publish` is called with all of them after each change. All methods
    run in the event loop."""

    def __init__(
        self,
        read: Callable[[], Awaitable[frozenset[IPAddress]]],
        publish: Callable[[frozenset[IPAddress]], None],
    ) -> None:
        self.known: frozenset[IPAddress] = frozenset()
        self._read = read
        self._publish = publish

    def add(self, addresses: frozenset[IPAddress]) -> None:
        """Add addresses that an ADD has made sure the node has."""
        if not addresses <= self.known:
            self._set(self.known | addresses)

    async def refresh(self) -> None:
        """Read the addresses from the kernel. Raises the errors of `read`."""
        while True:
            before = self.known
            found = await self._read()
            # If an ADD added addresses during the read, the result may lack them: read again.
            if self.known is before:
                break
        if found != before:
            self._set(found)

    def _set(self, addresses: frozenset[IPAddress]) -> None:
        self.known = addresses
        self._publish(addresses)

    async def keep(self) -> None:
        """Keep the addresses up to date, until cancelled. An address that the node gives up must not keep the identity
        of the host, because another machine may get it."""
        notified = asyncio.Event()
        changes = address_changes()
        event_loop = asyncio.get_running_loop()

        def note() -> None:
            changes.drain()
            notified.set()

        event_loop.add_reader(changes.fd, note)
        try:
            while True:
                started = time.monotonic()
                try:
                    await self.refresh()
                except (NodenetError, OSError) as error:
                    log.warning("this node's addresses could not be read: %s", error)
                pause = max(SETTLE_SECONDS, _PAUSE * (time.monotonic() - started))
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await notified.wait()
                await asyncio.sleep(pause)
                notified.clear()
        finally:
            event_loop.remove_reader(changes.fd)
            changes.close()
