"""The entries of one frontend in nn_frontend and nn_source_range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nodenet.abi import U32, FrontendEntry, FrontendFlag, FrontendKey, SourceRangeKey
from nodenet.compile.affinity import affinity_id
from nodenet.compile.services import Frontend

# The value says nothing: a source is allowed if its key is found.
_IN_RANGE = U32(1)


def internal_master(frontend: Frontend, service_id: int, backends: int) -> FrontendEntry:
    flags = FrontendFlag.ONLY_ELSEWHERE if frontend.only_elsewhere else 0
    if frontend.outside is not None:
        flags |= FrontendFlag.HAS_EXTERNAL
    if frontend.keep_source:
        flags |= FrontendFlag.KEEP_SOURCE
    if frontend.sources is not None:
        flags |= FrontendFlag.SOURCE_RANGES | (FrontendFlag.ALLOWS_NODE if frontend.sources.node else 0)
    if frontend.node_only:
        flags |= FrontendFlag.NODE_ONLY
    if not frontend.affinity_seconds:
        return FrontendEntry(0, service_id, backends, flags)
    return FrontendEntry(0, service_id, backends, flags, affinity_id(frontend.name), frontend.affinity_seconds)


def external_master(frontend: Frontend | None, service_id: int, backends: int) -> FrontendEntry | None:
    """None: the frontend has no EXTERNAL entry."""
    if frontend is None or frontend.outside is None:
        return None
    only_elsewhere = frontend.outside.only_elsewhere
    return internal_master(frontend._replace(outside=None, only_elsewhere=only_elsewhere), service_id, backends)


def change_slots(
    entries: dict[Any, Any], master: FrontendKey, service_id: int, before: Sequence[int], after: Sequence[int]
) -> None:
    """Add the slots that differ. None deletes an entry."""
    addr, port, protocol, _, scope = master
    for slot, backend_id in enumerate(after, 1):
        if slot > len(before) or before[slot - 1] != backend_id:
            entries[FrontendKey(addr, port, protocol, slot, scope)] = FrontendEntry(backend_id, service_id, 0)
    for slot in range(len(after) + 1, len(before) + 1):
        entries[FrontendKey(addr, port, protocol, slot, scope)] = None


def change_source_ranges(entries: dict[Any, Any], service_id: int, old: Frontend | None, new: Frontend | None) -> None:
    """Add the entries of nn_source_range. None deletes an entry."""
    for frontend, value in ((old, None), (new, _IN_RANGE)):
        if frontend is not None and frontend.sources is not None:
            for network in frontend.sources.ranges:
                entries[SourceRangeKey.of(service_id, network)] = value
