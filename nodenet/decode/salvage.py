"""Reads the valid parts of an object that does not match its schema: only the invalid element is lost, not the object.

An invalid item of a list is left out. An invalid field of the object, or of a nested object, counts as absent. An
invalid field inside an item of a list makes the whole item invalid: an endpoint or a port without one of its fields
would mean something else.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args, get_origin

import msgspec


class Unread(NamedTuple):
    """The path of an invalid element, for example spec.ports[1].port, and what is wrong with it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class _Lost:
    """The type of _LOST, which replaces an element that cannot be read."""


_LOST = _Lost()


def salvage(value: Any, wanted: Any, unread: list[Unread]) -> Any:
    """The parts of `value` that match `wanted`, a msgspec Struct. None if a required field is missing or invalid.

    Adds each element that was left out to `unread`.
    """
    found = _read(value, wanted, "", unread, in_list=False)
    return None if found is _LOST else found


def _read(value: Any, wanted: Any, path: str, unread: list[Unread], in_list: bool) -> Any:
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        message = str(error)
    # An optional field has a union type: try each member. The arguments of list and dict are their elements.
    for option in get_args(wanted) if get_origin(wanted) not in (list, dict) else (wanted,):
        if get_origin(option) is list and isinstance(value, list):
            return _items(value, get_args(option)[0], path, unread)
        if get_origin(option) is dict and isinstance(value, dict):
            return _values(value, get_args(option)[1], path, unread)
    types = (option for option in (wanted, *get_args(wanted)) if isinstance(option, type))
    struct = next((option for option in types if issubclass(option, msgspec.Struct)), None)
    if struct is not None and isinstance(value, dict):
        return _fields(value, struct, path, unread, in_list)
    unread.append(Unread(path or "the object", message))
    return _LOST


def _items(value: list[Any], wanted: Any, path: str, unread: list[Unread]) -> list[Any]:
    found = [_read(item, wanted, f"{path}[{index}]", unread, in_list=True) for index, item in enumerate(value)]
    return [item for item in found if item is not _LOST]


def _values(value: dict[str, Any], wanted: Any, path: str, unread: list[Unread]) -> dict[str, Any]:
    found = {key: _read(item, wanted, f"{path}[{key}]", unread, in_list=True) for key, item in value.items()}
    return {key: item for key, item in found.items() if item is not _LOST}


def _fields(value: dict[str, Any], struct: type[msgspec.Struct], path: str, unread: list[Unread], in_list: bool) -> Any:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        if field.encode_name not in value:
            item: Any = _LOST
        else:
            place = f"{path}.{field.encode_name}" if path else field.encode_name
            item = _read(value[field.encode_name], field.type, place, unread, in_list)
            if item is _LOST and in_list:
                return _LOST
        if item is not _LOST:
            found[field.name] = item
        elif field.required:
            return _LOST
    return struct(**found)
