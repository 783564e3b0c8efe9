"""A runtime that gives up sends SIGTERM. The plugin alone heeds it between its steps and while it waits, never in the
middle of one: what a step has done is then on the list of what is to be undone.

Elsewhere (the agent, tests) the signals are not blocked, so they never wait, and nothing here happens.
"""

from __future__ import annotations

import signal
import time

_ENDING = (signal.SIGTERM, signal.SIGINT)


def leave_orderly() -> None:
    """From here on the signals that end a process wait for `heed`. Programs that are started do not inherit that
    (child.py)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def heed(step: str = "") -> None:
    """Raises SystemExit when the process was asked to end."""
    for number in signal.sigpending():
        if number in _ENDING:
            raise SystemExit(128 + number)


def pause(seconds: float) -> None:
    """Sleep, to look again then. Raises SystemExit as `heed` does."""
    heed()
    time.sleep(seconds)
