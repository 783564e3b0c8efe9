"""Maps that store nothing, to measure only the user space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nodenet.reconcile.apply import Table
from nodenet.reconcile.maps import TABLES


class _NoTable:
    def items(self) -> Iterable[tuple[Any, Any]]:
        return ()

    def update(self, key: Any, value: Any) -> None:
        """Made."""

    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        """All made."""
        return len(entries)

    def delete(self, key: Any) -> None:
        """Made."""


def nowhere() -> dict[str, Table]:
    """A table for each map that the engine fills."""
    return {name: _NoTable() for name in TABLES}
