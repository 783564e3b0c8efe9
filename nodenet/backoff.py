"""Computes the pause before the next attempt. Pure: the caller waits."""

from __future__ import annotations

from dataclasses import dataclass

# 2 ** 32 times the first pause is longer than any limit in use. Unlimited doubling would overflow a float.
_MOST_DOUBLINGS = 32


def pause(first: float, last: float, failures: int) -> float:
    """Seconds to wait after a failure that follows `failures` others: `first`, doubled for each of them, at most
    `last`."""
    return min(first * 2.0 ** min(failures, _MOST_DOUBLINGS), last)


@dataclass(slots=True)
class Backoff:
    """Counts consecutive failures. `first` and `last` are the shortest and longest pause in seconds."""

    first: float
    last: float
    failures: int = 0

    def next(self) -> float:
        """Count a failure. Returns the seconds to wait after it."""
        seconds = pause(self.first, self.last, self.failures)
        self.failures += 1
        return seconds

    def reset(self) -> None:
        """Call after a success, or when there is a reason to expect one."""
        self.failures = 0
