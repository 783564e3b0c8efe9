"""Wakes everybody who waits for the next change."""

from __future__ import annotations

import asyncio


class Pulse:
    """For one event loop. `fire` costs the same for one waiter or a thousand."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The event that the next `fire` sets. Take it before you look at the state: a change after that is not
        missed."""
        return self._event

    def fire(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()
