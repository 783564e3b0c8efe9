"""Which function makes entries of a carried map out of those of the map that it replaces. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from nodenet.tables.types import Carried, Convert, Layout


def converter(carried: Carried, old: Layout | None) -> Convert | None:
    """None: the old entries cannot be read, so the map starts empty.

    The layout is the same (only the size of the map differs), or a declared previous one. Else it may be one of a later
    version, after a downgrade: its values are read by name, as long as they have every member of ours.
    """
    if old is None:
        return None
    if old == carried.layout:
        return _as_it_is
    for previous in carried.previous:
        if previous.layout == old:
            return previous.convert
    if old.key == carried.layout.key and _members(carried.layout.value) <= _members(old.value):
        return by_name(old.value, carried.layout.value)
    return None


def by_name(old: str, new: str) -> Convert:
    """Keys stay. Values get the members of the same name and size; what the old layout does not have is 0."""
    places = {(name, size): start for name, size, start in _spans(old)}
    # Each piece is a slice of the old value, or zeros where there is no start.
    pieces = [(places.get((name, size)) if not _is_padding(name) else None, size) for name, size, _ in _spans(new)]

    def convert(key: bytes, value: bytes) -> tuple[bytes, bytes]:
        return key, b"".join(bytes(size) if start is None else value[start : start + size] for start, size in pieces)

    return convert


def _as_it_is(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    return key, value


def _members(layout: str) -> set[tuple[str, int]]:
    return {(name, size) for name, size, _ in _spans(layout) if not _is_padding(name)}


def _is_padding(name: str) -> bool:
    return name.startswith("pad")


def _spans(layout: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and offset in bytes of each member."""
    start = 0
    for member in layout.split():
        name, _, size = member.rpartition(":")
        yield name, int(size), start
        start += int(size)
