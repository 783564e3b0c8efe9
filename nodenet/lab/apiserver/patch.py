"""The patch formats of the API: JSON merge patch (RFC 7386), JSON patch (RFC 6902), strategic merge patch, and the
three-way merge of `apply`. Pure. Inputs are not changed, and results share no data that is changed later.

Strategic merge: api-machinery's "strategic merge patch" note; merge keys come from schema.py.
"""

from __future__ import annotations

import copy
from typing import Any

from nodenet import jsonpatch
from nodenet.lab.apiserver.schema_types import ANY, ListOf, MapOf, Struct, Type
from nodenet.lab.apiserver.status import bad_request

Json = Any


def merge(target: Json, patch: Json) -> Json:
    """JSON merge patch: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def _field(schema: Type, key: str) -> Type:
    if isinstance(schema, Struct):
        return schema.fields.get(key, ANY)
    return schema.value if isinstance(schema, MapOf) else ANY


_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def strategic(target: Json, patch: Json, schema: Type) -> Json:
    """Strategic merge patch with the directives $patch, $retainKeys, $setElementOrder, $deleteFromPrimitiveList."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch", "merge")
    if directive == "delete":
        return {}
    plain = {key: value for key, value in patch.items() if not key.startswith("$")}
    if directive == "replace":
        return copy.deepcopy(plain)
    if directive != "merge":
        raise bad_request(f"$patch: expected merge, replace or delete, got {directive!r}")
    result = dict(target) if isinstance(target, dict) else {}
    if isinstance(patch.get("$retainKeys"), list):
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in plain.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _strategic_value(result.get(key), value, _field(schema, key))
    _apply_list_directives(result, patch, schema)
    return result


def _strategic_value(target: Json, patch: Json, schema: Type) -> Json:
    if isinstance(patch, list) and isinstance(schema, ListOf) and schema.merge_key is not None:
        return _merge_list(target if isinstance(target, list) else [], patch, schema)
    if isinstance(patch, list):
        # An atomic list is replaced as a whole. Directives in its elements have no meaning.
        return copy.deepcopy(patch)
    return strategic(target, patch, schema)


def _apply_list_directives(result: dict[str, Json], patch: dict[str, Json], schema: Type) -> None:
    for key, value in patch.items():
        if key.startswith(_DELETE) and isinstance(value, list):
            name = key.removeprefix(_DELETE)
            if isinstance(result.get(name), list):
                result[name] = [item for item in result[name] if item not in value]
    for key, value in patch.items():
        name = key.removeprefix(_ORDER)
        kind = _field(schema, name)
        if key.startswith(_ORDER) and isinstance(result.get(name), list) and isinstance(kind, ListOf):
            result[name] = _ordered(result[name], value, kind.merge_key or "")


def _identity(item: Json, merge_key: str) -> Json:
    return item.get(merge_key) if merge_key and isinstance(item, dict) else item


def _ordered(items: list[Json], order: list[Json], merge_key: str) -> list[Json]:
    """Sort the items that `order` names into its order. The other items follow in their previous order."""
    wanted = [_identity(item, merge_key) for item in order]
    first = [item for name in wanted for item in items if _identity(item, merge_key) == name]
    return first + [item for item in items if _identity(item, merge_key) not in wanted]


def _merge_list(target: list[Json], patch: list[Json], schema: ListOf) -> list[Json]:
    key = schema.merge_key or ""
    if not key:
        return target + [item for item in patch if item not in target]
    result = list(target)
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if "$patch" not in item]
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"strategic merge patch: list element without its merge key {key!r}: {item!r}")
        places = [i for i, have in enumerate(result) if isinstance(have, dict) and have.get(key) == item[key]]
        if item.get("$patch") == "delete":
            result = [have for i, have in enumerate(result) if i not in places]
        elif places:
            result[places[0]] = strategic(result[places[0]], item, schema.item)
        else:
            result.append(strategic({}, item, schema.item))
    return result


def three_way(original: Json, modified: Json, current: Json, schema: Type) -> Json:
    """The three-way merge of `apply`. Sets the fields of `modified` in `current`, and removes those that are in
    `original` (the last applied) but not in `modified`. All other fields of `current` remain.
    """
    if isinstance(modified, dict) and isinstance(current, dict):
        before = original if isinstance(original, dict) else {}
        result = {key: value for key, value in current.items() if key in modified or key not in before}
        for key, value in modified.items():
            if value is not None:
                result[key] = three_way(before.get(key), value, current.get(key), _field(schema, key))
        return result
    mergeable = isinstance(schema, ListOf) and schema.merge_key is not None
    if mergeable and isinstance(schema, ListOf) and isinstance(modified, list) and isinstance(current, list):
        return _three_way_list(original if isinstance(original, list) else [], modified, current, schema)
    return copy.deepcopy(modified)


def _three_way_list(original: list[Json], modified: list[Json], current: list[Json], schema: ListOf) -> list[Json]:
    key = schema.merge_key or ""
    names = [_identity(item, key) for item in modified]
    if len({repr(name) for name in names}) < len(names):
        # Elements with the same merge key (53/TCP and 53/UDP) cannot be distinguished: replace the whole list.
        return copy.deepcopy(modified)
    gone = [name for name in (_identity(item, key) for item in original) if name not in names]
    have = {repr(_identity(item, key)): item for item in current}
    before = {repr(_identity(item, key)): item for item in original}
    result = [
        three_way(before.get(repr(name)), item, have.get(repr(name)), schema.item)
        for name, item in zip(names, modified, strict=True)
    ]
    return result + [item for item in current if _identity(item, key) not in names + gone]


def json_patch(target: Json, operations: Json) -> Json:
    """Apply a JSON patch (RFC 6902). Raises a 400 ApiError that names the operation that failed."""
    try:
        return jsonpatch.apply(target, operations)
    except ValueError as error:
        raise bad_request(str(error)) from error
