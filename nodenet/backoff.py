"""How long to wait before the next attempt. Pure: the caller waits."""

from __future__ import annotations

from dataclasses import dataclass

# 2 ** 32 times any first pause is longer than any last one. More doublings would overflow a float in the end.
_MOST_DOUBLINGS = 32


def pause(first: float, last: float, failures: int) -> float:
    """Seconds to wait after `failures` failures before this one: `first`, doubled each time, at most `last`."""
    return min(first * 2.0 ** min(failures, _MOST_DOUBLINGS), last)


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row. `first` and `last` are seconds."""

    first: float
    last: float
    failures: int = 0

    def next(self) -> float:
        """One more failure: the seconds to wait after it."""
        seconds = pause(self.first, self.last, self.failures)
        self.failures += 1
        return seconds

    def reset(self) -> None:
        """It worked, or there is a reason to expect that it works now."""
        self.failures = 0
