"""Faults on the path from a node to the API server, as values. gate.py applies them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from nodenet.errors import BadInputError


class Mode(StrEnum):
    """A lasting fault. Each node has at most one; a new one replaces it. docs/lab-trouble.md describes what a client
    sees."""

    AWAY = "away"
    SLOW = "slow"
    HANG = "hang"
    BLACKHOLE = "blackhole"
    ERROR = "error"


class Event(StrEnum):
    """A fault that happens once and affects the connections or watches that are open at that moment."""

    RESET = "reset"
    CUT_WATCHES = "cut-watches"
    EXPIRE = "expire"


# Any HTTP error status. A real API server sends them while it starts, under overload, or to a caller whose credentials
# are not valid.
CODES = tuple(status.value for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class ApiTrouble:
    """`latency` (seconds) and `rate` (bytes per second; 0: unlimited) apply to SLOW, `code` (HTTP status) to ERROR."""

    mode: Mode
    latency: float = 0.0
    rate: int = 0
    code: int = 503

    def __str__(self) -> str:
        if self.mode is Mode.SLOW:
            parts = [f"{self.latency:g} s later"] if self.latency else []
            parts += [f"{self.rate} bytes/s"] if self.rate else []
            return f"{self.mode}: {', '.join(parts)}"
        return f"{self.mode}: {self.code}" if self.mode is Mode.ERROR else str(self.mode)


def to_json(trouble: ApiTrouble) -> dict[str, Any]:
    return asdict(trouble)


def from_json(data: Mapping[str, Any]) -> ApiTrouble:
    """Raises BadInputError that names the field and what was expected."""
    try:
        mode = Mode(data.get("mode", ""))
    except ValueError as error:
        raise BadInputError(f"mode: expected one of {', '.join(Mode)}, got {data.get('mode')!r}") from error
    latency = _number(data, "latency", 0.0)
    rate, code = _number(data, "rate", 0), _number(data, "code", 503)
    if mode is Mode.SLOW and not (latency or rate):
        raise BadInputError("slow: expected a latency, a rate, or both")
    if code not in CODES:
        raise BadInputError(f"code: expected an HTTP status of an error, got {code:g}", "for example 503")
    return ApiTrouble(mode, float(latency), int(rate), int(code))


def _number(data: Mapping[str, Any], key: str, default: float) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadInputError(f"{key}: expected a number from 0, got {value!r}")
    return value
