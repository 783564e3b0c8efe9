"""A runtime that gives up sends SIGTERM. Without an agent the plugin handles this signal between two steps and while it
waits, never within a step: the result of a step is then always on the list of things to undo.

In the agent and in tests the signals are not blocked, so none is ever pending and these functions do nothing.
"""

from __future__ import annotations

import signal
import time

_TERMINATION = (signal.SIGTERM, signal.SIGINT)


def block_termination_signals() -> None:
    """Block SIGTERM and SIGINT, so that they stay pending until `raise_if_signalled`. Child processes do not inherit
    the blocked signals (child.py)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATION)


def raise_if_signalled(step: str = "") -> None:
    """Raises SystemExit if SIGTERM or SIGINT is pending. `step` is ignored: Plugin calls this before each step."""
    for number in signal.sigpending():
        if number in _TERMINATION:
            raise SystemExit(128 + number)


def pause(seconds: float) -> None:
    """Sleep between two attempts. Raises SystemExit as `raise_if_signalled` does."""
    raise_if_signalled()
    time.sleep(seconds)
