"""Names the maps that are nearly full, before something does not fit. The programs' own maps make room by themselves
(nodenet/agent/evictions.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nodenet import tables
from nodenet.tables import Group

# The share of a map from which it is named. The alert NodenetMapPressure has the same.
NEARLY_FULL = 0.9
# Half of these maps is room for changes (docs/maps.md).
_SHARED_OUT = (tables.POLICY.name, tables.CIDR.name)


def problems(held: Mapping[str, Mapping[Any, Any]], sizes: Mapping[str, int]) -> list[str]:
    """One sentence for each map that is nearly full. `held`: the content of the maps that the compiler fills; `sizes`:
    their entries."""
    return list(_sentences(held, sizes))


def _sentences(held: Mapping[str, Mapping[Any, Any]], sizes: Mapping[str, int]) -> Iterator[str]:
    for group in Group:
        for name in tables.members(group):
            declared, used = tables.MAPS[name], len(held.get(name, ()))
            room = sizes[name] // 2 if name in _SHARED_OUT else sizes[name]
            if declared.full and used >= NEARLY_FULL * room:
                key = declared.size.key
                change = f"set a larger {key} or map_memory" if key else "its size cannot be configured"
                yield f"map {name} is nearly full: {used} of {room} entries; then {declared.full}; {change}"
