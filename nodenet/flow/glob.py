"""Matches names against patterns with `*` (any characters). It uses no regular expressions, so that a hostile pattern
cannot cause backtracking. Pure."""

from __future__ import annotations

import string

from nodenet.flow.limits import shown

_ALLOWED = frozenset(string.ascii_letters + string.digits + "_.*-")


def check(pattern: str) -> None:
    """Raises ValueError for a pattern that no name can match."""
    if not pattern or not _ALLOWED.issuperset(pattern):
        raise ValueError(f"expected a name with letters, digits, '-', '.' and '*', got {shown(pattern)}")


def matches(pattern: str, name: str) -> bool:
    """Whether the whole name matches. Each part between stars is searched only once, after the previous part: the first
    match leaves the most room for the rest, so no backtracking is needed."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first):
        return False
    place = len(first)
    for part in middle:
        found = name.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return len(name) - len(last) >= place and name.endswith(last)
