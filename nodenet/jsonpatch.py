"""JSON patch (RFC 6902). Pure: the target is not changed, and the result shares no data that is changed later."""

from __future__ import annotations

import copy
from typing import Any

Json = Any


def apply(target: Json, operations: Json) -> Json:
    """Apply a JSON patch. Raises ValueError that names the operation that failed."""
    if not isinstance(operations, list):
        raise ValueError("json patch: expected a list of operations")
    result = {"": copy.deepcopy(target)}
    for index, operation in enumerate(operations):
        try:
            _operate(result, operation)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"json patch: operation {index} {operation!r}: {error!r}") from error
    return result[""]


def _tokens(pointer: str) -> list[str]:
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"pointer {pointer!r} must start with /")
    return [""] + [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _parent(root: Json, pointer: str) -> tuple[Json, Json]:
    tokens = _tokens(pointer)
    here = root
    for token in tokens[:-1]:
        here = here[int(token)] if isinstance(here, list) else here[token]
    last = tokens[-1]
    if isinstance(here, list):
        return here, len(here) if last == "-" else _index(last)
    if not isinstance(here, dict):
        raise TypeError(f"{pointer!r} leads through a plain value")
    return here, last


def _index(token: str) -> int:
    if not token.isdigit():
        raise ValueError(f"{token!r} is no list index")
    return int(token)


def _operate(root: Json, operation: dict[str, Any]) -> None:
    kind = operation["op"]
    if kind in ("move", "copy"):
        source, place = _parent(root, operation["from"])
        value = source.pop(place) if kind == "move" else copy.deepcopy(source[place])
        kind = "add"
    elif kind != "remove":
        value = copy.deepcopy(operation["value"])
    where, place = _parent(root, operation["path"])
    if kind == "add" and isinstance(where, list):
        if place > len(where):
            raise IndexError(f"{operation['path']}: the list has {len(where)} elements")
        where.insert(place, value)
    elif kind == "add":
        where[place] = value
    elif kind == "replace":
        where[place]  # a path that is not there is an error
        where[place] = value
    elif kind == "remove":
        del where[place]
    elif kind == "test":
        if where[place] != value:
            raise ValueError(f"test failed: found {where[place]!r}")
    else:
        raise ValueError(f"unknown operation {kind!r}")
