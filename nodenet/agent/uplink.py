"""Follows the uplink: which interface it is, and its MTU, which new pods get too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from nodenet.agent.host import no_uplink
from nodenet.errors import NodenetError
from nodenet.link import uplink
from nodenet.link.handle import Interface
from nodenet.model import IPAddress
from nodenet.pulse import any_of

log = logging.getLogger(__name__)

# Seconds between two reactions to notifications of the kernel, because several often come together.
SETTLE_SECONDS = 0.1
# The pause after a reaction is also this many times as long as the reaction, so that it takes at most a tenth of the
# time.
_PAUSE = 9
# Seconds between two checks without a notification.
POLL_SECONDS = 30.0


class UplinkKeeper:
    """`find` reads the uplink from the kernel, for the node's addresses that `own` returns. `disturbed` is called after
    each change of links, addresses and routes that may matter. All methods run in the event loop, except for `mtu`."""

    def __init__(
        self,
        name: str,
        find: Callable[[Iterable[IPAddress]], Awaitable[Interface | None]],
        own: Callable[[], Iterable[IPAddress]],
        publish_mtu: Callable[[int], None],
        disturbed: Callable[[], None],
    ) -> None:
        self.known: Interface | None = None
        self.problems: list[str] = []
        self._name = name
        self._find = find
        self._own = own
        self._publish_mtu = publish_mtu
        self._disturbed = disturbed

    def mtu(self) -> int:
        """The uplink's MTU; 0 if it is not known. May be called from any thread."""
        return self.known.mtu if self.known else 0

    async def refresh(self) -> None:
        """Read the uplink from the kernel."""
        own = frozenset(self._own())
        try:
            found = await self._find(own)
        except (NodenetError, OSError) as error:
            self._report([f"uplink: {error}"])
            return
        before, self.known = self.known, found
        self._report([] if found else [no_uplink(self._name, own)])
        if found and (before is None or (before.index, before.mtu) != (found.index, found.mtu)):
            log.info("uplink %s: MTU %d", found.name, found.mtu)
            self._publish_mtu(found.mtu)

    async def keep(self, changed: Callable[[], asyncio.Event]) -> None:
        """Follow the uplink until cancelled. `changed` returns the event of the next change of the Nodes: the node's
        addresses may have changed."""
        listener = uplink.changes()
        noted = asyncio.Event()
        event_loop = asyncio.get_running_loop()

        def note() -> None:
            found = listener.read()
            index = self.known.index if self.known else 0
            # None: notifications were lost.
            if found is None or any(uplink.concerns(kind, body, index) for kind, body in found):
                noted.set()

        event_loop.add_reader(listener.fd, note)
        try:
            while True:
                event, started = changed(), time.monotonic()
                await self.refresh()
                if noted.is_set():
                    noted.clear()
                    self._disturbed()
                await asyncio.sleep(max(SETTLE_SECONDS, _PAUSE * (time.monotonic() - started)))
                await any_of((noted, event), POLL_SECONDS)
        finally:
            event_loop.remove_reader(listener.fd)
            listener.close()

    def _report(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s", problem)
        self.problems = problems
