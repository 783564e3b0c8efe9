"""An interface for waiting until no program uses the previous generation of policy any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Grace(Protocol):
    """One grace period at a time. `begin` and `wait` are not called at the same time."""

    def begin(self, then: Callable[[], None]) -> None:
        """Start a grace period, and return at once. When all programs that run now have ended, `then` is called, in any
        thread. It must not raise."""
        ...

    def wait(self) -> None:
        """Return when the last grace period is over and its `then` has returned. Raises OSError if that cannot be
        found out; `then` was not called in that case."""
        ...


class NoPrograms:
    """The Grace of maps that no program reads."""

    def begin(self, then: Callable[[], None]) -> None:
        then()

    def wait(self) -> None:
        """There is nothing to wait for."""
