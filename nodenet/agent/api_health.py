"""Describes the state of the Kubernetes API watches for `nodenet status`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nodenet.kinds import ApiKind
from nodenet.kube.health import STALE_SECONDS, KindStats

# How many undecodable objects are listed one by one. The others are only counted.
SHOWN = 20


def watch_trouble(stats: Mapping[ApiKind, KindStats], now: float) -> Iterator[str]:
    """One sentence for each current problem. `now` is in seconds of the monotonic clock."""
    for kind, found in stats.items():
        age = found.age(now)
        if found.error:
            yield f"watch of {kind}: {found.error}"
        elif age is not None and age > STALE_SECONDS:
            yield f"watch of {kind}: the API server has sent nothing for {age:.0f} s"
    # Copy `found.unread` before the iteration: this may run in a worker thread while the event loop changes it.
    unread = [(kind, *item) for kind, found in stats.items() for item in tuple(found.unread.items())]
    yield from (f"could not be read: {kind} {ref}: {'; '.join(parts)}" for kind, ref, parts in unread[:SHOWN])
    if len(unread) > SHOWN:
        yield f"could not be read: {len(unread) - SHOWN} more objects; the log names them"
    for kind, found in stats.items():
        if found.nameless:
            yield f"{kind}: {found.nameless} versions of objects without a readable name; the log has them"


def _state(found: KindStats) -> str:
    if found.error:
        return "failing"
    if not found.installed:
        return "not installed"
    return "watched" if found.lists else "not listed yet"


def as_rows(stats: Mapping[ApiKind, KindStats], now: float) -> dict[str, Any]:
    """The watches by kind, for `status -o json`. `lastByteSeconds`: seconds since the last byte of the server, null
    before the first."""
    rows = {}
    for kind, found in stats.items():
        age = found.age(now)
        rows[kind.name] = {
            "state": _state(found),
            "events": found.events,
            "lists": found.lists,
            "errors": found.errors,
            "error": found.error,
            "unread": len(found.unread),
            "lastByteSeconds": None if age is None else round(age, 1),
        }
    return rows
