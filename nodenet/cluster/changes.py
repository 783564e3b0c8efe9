"""The difference between two versions of an API object, by field. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

# What the API server sets with every write.
_NOT_SHOWN = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
# Annotations that say nothing about what the object does.
_BOOKKEEPING = ("deprecated.daemonset.template.generation", "nodenet.io/release")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each changed field: `spec.a.b: old -> new`. Status is left out."""
    return list(_compare(_cleaned(before), _cleaned(after), ""))


def _cleaned(obj: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in (obj.get("metadata") or {}).items() if key not in _NOT_SHOWN}
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key not in _BOOKKEEPING}
    metadata["annotations"] = annotations
    return {**{key: value for key, value in obj.items() if key != "status"}, "metadata": metadata}


def _compare(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            shown = f"[{key}]" if "/" in key or "." in key else f".{key}" if path else key
            yield from _compare(before.get(key), after.get(key), path + shown)
    elif isinstance(before, list) and isinstance(after, list) and _named(before) and _named(after):
        old, new = ({item["name"]: item for item in items} for items in (before, after))
        for name in {**old, **new}:
            yield from _compare(old.get(name), new.get(name), f"{path}[{name}]")
    elif before != after:
        if isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
            lines = difflib.ndiff(before.splitlines(), after.splitlines())
            yield from (f"{path}: {line}" for line in lines if line[:1] in "+-")
            return
        yield f"{path}: {_short(before)} -> {_short(after)}"


def _named(items: list[Any]) -> bool:
    """Lists of containers, volumes and environment variables: their items have names, and their order says nothing."""
    names = [item.get("name") for item in items if isinstance(item, Mapping)]
    return len(names) == len(items) == len(set(names)) and None not in names


def _short(value: Any) -> str:
    if value is None:
        return "(absent)"
    text = str(value)
    return repr(text[:200] + "...") if len(text) > 200 else repr(value)
