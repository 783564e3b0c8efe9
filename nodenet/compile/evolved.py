"""Tables that tell what distinguishes them from the table before: comparing costs what changed, not their size."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class Evolved(dict[Any, Any]):
    """A table made by `evolve`. It must not be changed.

    `changed`: the keys that `before`, and it alone, lacks or holds with another value. Which table that was is told by
    a token: a reference would keep every table alive that there ever was.
    """

    __slots__ = ("_base", "_version", "changed")

    def __init__(self, entries: Mapping[Any, Any], before: object = None, changed: Collection[Any] = ()) -> None:
        super().__init__(entries)
        self._version = object()
        self._base = before._version if isinstance(before, Evolved) else None
        self.changed = changed

    def follows(self, other: object) -> bool:
        """Whether `changed` tells all that distinguishes this table from the other."""
        return isinstance(other, Evolved) and self._base is other._version


def evolve(before: Mapping[Any, Any], changes: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """`before` with the changes made; a value None deletes the key. The same object when nothing is different then."""
    if not before:
        # Copying a dict hashes no key again, and hashing is what costs in a table of addresses.
        first = Evolved(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del first[key]
        return first or before
    real = {key: value for key, value in changes.items() if before.get(key) != value}
    if not real:
        return before
    after = Evolved(before, before, tuple(real))
    for key, value in real.items():
        if value is None:
            del after[key]
        else:
            after[key] = value
    return after
