"""Wakes all tasks that wait for the next change."""

from __future__ import annotations

import asyncio


class Pulse:
    """For one event loop."""

    def __init__(self) -> None:
        # None: nobody has asked for the event since the last `fire`.
        self._event: asyncio.Event | None = None

    def next(self) -> asyncio.Event:
        """The event that the next `fire` sets. Call this before you read the state, so that no later change is
        missed."""
        if self._event is None:
            self._event = asyncio.Event()
        return self._event

    def fire(self) -> None:
        """Wake all tasks that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None
