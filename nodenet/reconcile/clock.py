"""An interface to the clock, so that tests can replace it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Protocol


class Clock(Protocol):
    """The clock of the loop. All times are in seconds."""

    def monotonic(self) -> float:
        """A time that never goes back. Only differences are meaningful."""
        ...

    def time(self) -> float:
        """Seconds since 1970, for display."""
        ...

    def cpu(self) -> float:
        """CPU time of the calling thread. Only differences within one thread are meaningful."""
        ...

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109
        """Wait until the event is set (True) or the timeout is over (False). None: no timeout."""
        ...


class RealClock:
    """The machine's."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def cpu(self) -> float:
        return time.thread_time()

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109
        # asyncio.wait_for would create a task for each wait, which is more expensive than a small run of the loop.
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await event.wait()
        return event.is_set()
