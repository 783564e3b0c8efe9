"""Time as something that is given."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the loop knows of time, in seconds."""

    def monotonic(self) -> float:
        """Never goes back; means something only as a difference."""
        ...

    def time(self) -> float:
        """Since 1970, for people."""
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

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:  # noqa: ASYNC109
        if event.is_set():
            return True
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            return False
        return True
