"""Field masks of GetFlows as trees. They decide which fields are filled, and which nested fields are cleared again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nodenet.flow import limits
from nodenet.flow.filter import FilterError
from nodenet.rpc.pb.flow import flow_pb2

# Field name -> mask of its nested fields; None: all of them.
Mask = dict[str, "Mask | None"]


def parse(paths: Sequence[str]) -> Mask | None:
    """Parse a field mask. Returns None if there are no paths. Raises FilterError for a path that flow.Flow does not
    have, and for too many or too long paths."""
    if len(paths) > limits.MAX_PATHS:
        raise FilterError("field_mask", f"{len(paths)} paths, at most {limits.MAX_PATHS}")
    mask: Mask = {}
    for path in paths:
        _check(path)
        _add(mask, path.split("."))
    return mask or None


def prune(message: Any, kept: Mask) -> None:
    """Clear every field that is not in `kept`, in place."""
    for descriptor, value in message.ListFields():
        if descriptor.name not in kept:
            message.ClearField(descriptor.name)
            continue
        inner = kept[descriptor.name]
        if inner is not None:
            for one in value if hasattr(value, "__len__") else (value,):  # a repeated field
                prune(one, inner)


def _add(mask: Mask, parts: list[str]) -> None:
    head, *rest = parts
    if not rest:
        mask[head] = None
        return
    inner = mask.setdefault(head, {})
    # None: an earlier path selected the whole field already.
    if inner is not None:
        _add(inner, rest)


def _check(path: str) -> None:
    if len(path) > limits.MAX_PATH_LENGTH:
        raise FilterError("field_mask", f"a path of {len(path)} characters, at most {limits.MAX_PATH_LENGTH}")
    here: Any = flow_pb2.Flow.DESCRIPTOR
    for part in path.split("."):
        field = here.fields_by_name.get(part) if here is not None else None
        if field is None:
            raise FilterError("field_mask", f"flow.Flow has no field {limits.shown(path)}")
        here = field.message_type
