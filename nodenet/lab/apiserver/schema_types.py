"""The vocabulary of schema.py: JSON types, objects, maps and lists with merge keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Anything:
    """Kept as it came: the lab does not read it."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One JSON value. `name` is how a message calls it."""

    name: str
    types: tuple[type, ...]


@dataclass(frozen=True, slots=True)
class MapOf:
    """Free keys, one type of value."""

    value: Type


@dataclass(frozen=True, slots=True)
class ListOf:
    """`merge_key`: None is atomic, "" merges plain values as a set, else the key that tells elements apart.

    An empty list is the same as none and is dropped, but for those few that `keep_empty`.
    """

    item: Type
    merge_key: str | None = None
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """Named fields; others are unknown, or kept as they came when it is `open`."""

    fields: dict[str, Type]
    open: bool = False


Type = Anything | Scalar | MapOf | ListOf | Struct


def struct(**fields: Type) -> Struct:
    return Struct(fields)


def _all(names: str, wanted: Type) -> dict[str, Type]:
    return dict.fromkeys(names.split(), wanted)


def anys(names: str) -> dict[str, Type]:
    """Fields that are known by name and read by nobody here."""
    return _all(names, ANY)


def strings(names: str) -> dict[str, Type]:
    return _all(names, STRING)


def integers(names: str) -> dict[str, Type]:
    return _all(names, INT)


def booleans(names: str) -> dict[str, Type]:
    return _all(names, BOOL)


ANY = Anything()
STRING = Scalar("string", (str,))
INT = Scalar("integer", (int,))
BOOL = Scalar("boolean", (bool,))
INT_OR_STRING = Scalar("integer or string", (int, str))
STRINGS = MapOf(STRING)
# An object of which only its being one matters.
OBJECT = MapOf(ANY)
CONDITION = Struct(
    {
        **_all("type status reason message", STRING),
        **_all("lastTransitionTime lastUpdateTime lastProbeTime lastHeartbeatTime", STRING),
        "observedGeneration": INT,
    }
)
CONDITIONS = ListOf(CONDITION, "type")
