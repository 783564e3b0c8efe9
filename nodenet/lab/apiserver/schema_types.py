"""The types of which schema.py consists: JSON values, objects, maps, and lists with merge keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Anything:
    """Stored unchanged, because the lab does not read it."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One JSON value. `name` is its name in messages."""

    name: str
    types: tuple[type, ...]


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with arbitrary keys and one type of value."""

    value: Type


@dataclass(frozen=True, slots=True)
class ListOf:
    """`merge_key`: None is an atomic list, "" merges scalar values as a set, else the key that identifies an element.

    An empty list is removed, because it means the same as none, except if `keep_empty` is set.
    """

    item: Type
    merge_key: str | None = None
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with named fields. Other fields are reported as unknown, or stored unchanged if `open`."""

    fields: dict[str, Type]
    open: bool = False


Type = Anything | Scalar | MapOf | ListOf | Struct


def struct(**fields: Type) -> Struct:
    return Struct(fields)


def _all(names: str, wanted: Type) -> dict[str, Type]:
    return dict.fromkeys(names.split(), wanted)


def anys(names: str) -> dict[str, Type]:
    """Fields that are known but not read by the lab."""
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
# Any object; its fields do not matter.
OBJECT = MapOf(ANY)
CONDITION = Struct(
    {
        **_all("type status reason message", STRING),
        **_all("lastTransitionTime lastUpdateTime lastProbeTime lastHeartbeatTime", STRING),
        "observedGeneration": INT,
    }
)
CONDITIONS = ListOf(CONDITION, "type")
