"""Carries out a plan, write by write, on anything that looks like a map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Protocol

from nodenet.errors import NodenetError
from nodenet.reconcile.plan import Write


class Table(Protocol):
    """One map of the kernel, in records of abi.MAPS. Every method raises OSError or NodenetError when it fails."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Every entry, each once, as far as the map did not change meanwhile."""
        ...

    def update(self, key: Any, value: Any) -> None:
        """Insert or replace."""
        ...

    def delete(self, key: Any) -> None:
        """Remove. A key that is not there is no error: it is gone, which is what was asked for."""
        ...


class ApplyError(NodenetError):
    """A write, or the reading of a table, failed. `write` is None for a reading."""

    def __init__(self, table: str, action: str, cause: BaseException, write: Write | None = None) -> None:
        super().__init__(f"{action}: {cause}", "the agent tries again by itself; see `nodenet map list` for full maps")
        self.table = table
        self.write = write


def read(tables: Mapping[str, Table], names: Iterable[str]) -> dict[str, dict[Any, Any]]:
    """What the named maps hold now. Raises ApplyError that names the table."""
    held: dict[str, dict[Any, Any]] = {}
    for name in names:
        try:
            held[name] = dict(tables[name].items())
        except (OSError, NodenetError) as error:
            raise ApplyError(name, f"{name}: read", error) from error
    return held


def apply(
    writes: Iterable[Write],
    tables: Mapping[str, Table],
    held: Mapping[str, MutableMapping[Any, Any]],
    done: Counter[str],
) -> None:
    """Make the writes in their order; `held` follows and `done` counts them by table, each as soon as it is made.

    Raises ApplyError that names table and key at the first that fails: those after it may depend on it.
    """
    for write in writes:
        table = tables[write.table]
        try:
            if write.is_delete:
                table.delete(write.key)
            else:
                table.update(write.key, write.value)
        except (OSError, NodenetError) as error:
            raise ApplyError(write.table, str(write), error, write) from error
        if write.is_delete:
            held[write.table].pop(write.key, None)
        else:
            held[write.table][write.key] = write.value
        done[write.table] += 1
