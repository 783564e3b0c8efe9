"""Wakes all tasks that wait for the next change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Pulse:
    """For one event loop."""

    def __init__(self) -> None:
        # None: no caller has asked for the event since the last `fire`.
        self._event: asyncio.Event | None = None

    def next(self) -> asyncio.Event:
        """The event that the next `fire` sets. Call this before you read the state, so that no later change is
        missed."""
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    @property
    def asked(self) -> bool:
        """True if `next` was called since the last `fire`, so that a task may wait."""
        return self._event is not None

    def fire(self) -> None:
        """Wake all tasks that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None


async def any_of(events: Iterable[asyncio.Event], seconds: float | None) -> None:
    """Wait until one of the events is set, or for so many seconds (None: without an end)."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
