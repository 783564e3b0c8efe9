"""Ends the read of an answer that gets no data for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp


class IdleLimit:
    """Inside its `async with`, a read of `content` raises SocketTimeoutError after so many seconds without data.
    `last_data`: when data was last received, on the clock of the event loop.

    aiohttp's own limit makes a new timer for each piece of data, which costs about as much as to decode it. This one
    looks again when its timer is over.
    """

    def __init__(self, content: aiohttp.StreamReader, seconds: float, last_data: Callable[[], float]) -> None:
        self._content = content
        self._seconds = seconds
        self._last_data = last_data
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._last_data() + self._seconds
        if due > loop.time():
            self._timer = loop.call_at(due, self._look)
        else:
            self._content.set_exception(aiohttp.SocketTimeoutError(f"no data for {self._seconds:g} s"))
