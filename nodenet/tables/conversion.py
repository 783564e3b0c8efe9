"""Finds the function that converts the entries of a replaced map for its successor. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from nodenet.tables.types import Carried, Convert, Layout


def converter(carried: Carried, old: Layout | None, source: str = "") -> Convert | None:
    """The converter for entries of layout `old`. None: they cannot be read, so the map starts empty. `source`: the name
    of the old map, if it had another one.

    `old` may be the current layout (only the size of the map differs) or a declared previous one. After a downgrade it
    may be that of a later version. Its values are then converted by member names, if they have all our members.
    """
    if old is None:
        return None
    for previous in carried.previous:
        if (previous.layout, previous.source) == (old, source):
            return previous.convert
    if source:
        return None
    if old == carried.layout:
        return _as_it_is
    if old.key == carried.layout.key and _members(carried.layout.value) <= _members(old.value):
        return by_name(old.value, carried.layout.value)
    return None


def by_name(old: str, new: str) -> Convert:
    """Converts values by member names. Keys do not change. A member that the old layout does not have with the same
    size becomes 0."""
    places = {(name, size): start for name, size, start in _spans(old)}
    # (start, size) for each member: a slice of the old value, or zeros if start is None.
    pieces = [(places.get((name, size)) if not _is_padding(name) else None, size) for name, size, _ in _spans(new)]

    def convert(key: bytes, value: bytes) -> Iterator[tuple[bytes, bytes]]:
        made = b"".join(bytes(size) if start is None else value[start : start + size] for start, size in pieces)
        yield key, made

    return convert


def _as_it_is(key: bytes, value: bytes) -> Iterator[tuple[bytes, bytes]]:
    yield key, value


def _members(layout: str) -> set[tuple[str, int]]:
    return {(name, size) for name, size, _ in _spans(layout) if not _is_padding(name)}


def _is_padding(name: str) -> bool:
    return name.startswith("pad")


def _spans(layout: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and offset of each member, in bytes."""
    start = 0
    for member in layout.split():
        name, _, size = member.rpartition(":")
        yield name, int(size), start
        start += int(size)
