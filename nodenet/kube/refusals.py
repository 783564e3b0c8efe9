"""Remembers writes that RBAC refused, so that each is logged once and not retried with every write. Pure except for the
log."""

from __future__ import annotations

import logging
from typing import NamedTuple

log = logging.getLogger(__name__)

# A refused write is retried after this time, because roles may change while the agent runs.
REFUSED_SECONDS = 600.0
# The largest number of keys (verb, resource, namespace). Namespaces come and go, so the oldest keys are evicted.
_MOST = 256

Key = tuple[str, str, str]


class _Refusal(NamedTuple):
    message: str
    since: float


class Refusals:
    """Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._found: dict[Key, _Refusal] = {}

    def holds(self, key: Key, now: float) -> bool:
        """Whether this was refused within the last REFUSED_SECONDS."""
        found = self._found.get(key)
        return found is not None and now - found.since < REFUSED_SECONDS

    def add(self, key: Key, message: str, now: float) -> None:
        logged = any(known[:2] == key[:2] for known in self._found)
        log.log(logging.DEBUG if logged else logging.WARNING, "%s %s: %s", key[0], key[1], message)
        # Insert at the end: the order of the dict is the age of the refusals.
        self._found.pop(key, None)
        self._found[key] = _Refusal(message, now)
        if len(self._found) > _MOST:
            del self._found[next(iter(self._found))]

    def remove(self, key: Key) -> None:
        """The write succeeded: it is allowed now."""
        self._found.pop(key, None)

    def sentences(self) -> list[str]:
        """One sentence for each verb and resource, with the API's message and the number of further namespaces."""
        grouped: dict[tuple[str, str], list[_Refusal]] = {}
        for (verb, noun, _), refusal in self._found.items():
            grouped.setdefault((verb, noun), []).append(refusal)
        return [
            f"no permission to {verb} {noun}: {found[0].message}"
            + (f" (and in {len(found) - 1} other namespaces)" if len(found) > 1 else "")
            for (verb, noun), found in grouped.items()
        ]
