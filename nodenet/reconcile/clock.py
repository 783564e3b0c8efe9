"""An interface to the clock, so that tests can replace it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
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

    def alarm(self, event: asyncio.Event) -> Callable[[float], None]:
        """A function that sets an alarm: the event is set after so many seconds, or once earlier, at the time of the
        alarm before."""
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

    def alarm(self, event: asyncio.Event) -> Callable[[float], None]:
        return _Alarm(event).set


class _Alarm:
    """One timer of the event loop. A later time does not replace it: who waits for changes sets the alarm again after
    each, almost always for the same time, and a new timer costs more."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._event.set()
