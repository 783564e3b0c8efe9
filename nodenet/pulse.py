"""Wakes all tasks that wait for the next change."""

from __future__ import annotations

import asyncio


class Pulse:
    """For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The event that the next `fire` sets. Call this before you read the state, so that no later change is
        missed."""
        return self._event

    def fire(self) -> None:
        """Wake all tasks that wait now."""
        self._event.set()
        self._event = asyncio.Event()
