"""Checks of single values that several kinds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodenet.lab.apiserver.status import Cause, invalid, required, unsupported

PROTOCOLS = ("SCTP", "TCP", "UDP")
PORT_RULE = "must be between 1 and 65535, inclusive"


def check_port(value: object, path: str) -> list[Cause]:
    fine = isinstance(value, int) and 1 <= value <= 65535
    return [] if fine else [invalid(path, value, PORT_RULE)]


def check_choice(obj: Mapping[str, Any], key: str, known: Sequence[str], path: str) -> list[Cause]:
    """The problem of a field that must have one of the `known` values; its default is already set."""
    value = obj.get(key)
    if value in known:
        return []
    return [unsupported(f"{path}.{key}", value, known) if value else required(f"{path}.{key}")]


def check_not_negative(obj: Mapping[str, Any], key: str, path: str) -> list[Cause]:
    value = obj.get(key, 0)
    fine = isinstance(value, int) and value >= 0
    return [] if fine else [invalid(f"{path}.{key}", value, "must be greater than or equal to 0")]
