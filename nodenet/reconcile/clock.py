"""Time as something that is given."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Protocol


class Clock(Protocol):
    """What the loop knows of time, in seconds."""

    def monotonic(self) -> float:
        """Never goes back; means something only as a difference."""
        ...

    def time(self) -> float:
        """Since 1970, for people."""
        ...

    def cpu(self) -> float:
        """CPU time of the calling thread. Means something only as a difference within one thread."""
        ...

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109
        """Until the event is set (True) or the timeout is over (False). None: for ever."""
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
        # asyncio.wait_for would make a task for each wait, which costs more than a small run of the loop.
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await event.wait()
        return event.is_set()
