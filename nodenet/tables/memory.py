"""How many entries maps get from the memory of a node. Pure.

Maps of the cluster's size (Services, policies, identities) take memory as they are filled, so their size is a limit.
`nn_ct` and the buckets of hash maps take it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nodenet.tables import MAPS, BpfMap

# A node with this much memory gets the sizes of the declarations with this share of it. That is about what all maps
# take when they are full (docs/maps.md).
REFERENCE_BYTES = 16 << 30
DEFAULT_SHARE = 0.02
# Computed sizes are multiples of this.
_STEP = 1024


class Limits(NamedTuple):
    """The smallest and the largest computed number of entries."""

    floor: int
    cap: int


# `endpoint_entries` is not here: how many pods a node has does not follow from its memory alone.
FOLLOWING: Mapping[str, Limits] = {
    "ct_entries": Limits(32_768, 1_048_576),
    "service_entries": Limits(32_768, 524_288),
    "backend_entries": Limits(32_768, 524_288),
    "ipcache_entries": Limits(65_536, 524_288),
    "policy_entries": Limits(131_072, 4_194_304),
}


def map_of(key: str) -> BpfMap:
    """The first map that has exactly the number of entries that a key of SIZE_KEYS sets."""
    return next(one for one in MAPS.values() if one.size.key == key and one.size.share == one.size.times == 1)


def entries(key: str, memory: int, share: float) -> int:
    """The number of entries on a node with `memory` bytes. `share` 0: that of the declarations on every node."""
    limits = FOLLOWING.get(key)
    if not share or limits is None:
        return map_of(key).size.entries
    wanted = map_of(key).size.entries * memory * share / (REFERENCE_BYTES * DEFAULT_SHARE)
    return min(max(int(wanted) // _STEP * _STEP, limits.floor), limits.cap)
