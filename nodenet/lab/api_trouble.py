"""What can be wrong with a node's way to the API server: the values that the gate plays (gate.py). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from nodenet.errors import BadInputError


class Mode(StrEnum):
    """One at a time for each node; the next one replaces it. `docs/lab-trouble.md` says what a client sees."""

    AWAY = "away"
    SLOW = "slow"
    HANG = "hang"
    BLACKHOLE = "blackhole"
    ERROR = "error"


class Event(StrEnum):
    """What happens once, to what is open at that moment."""

    RESET = "reset"
    CUT_WATCHES = "cut-watches"
    EXPIRE = "expire"


# An API server answers these while it starts, is overloaded, or does not know the caller any more.
CODES = tuple(status.value for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True, slots=True)
class ApiTrouble:
    """`latency` in seconds and `rate` in bytes per second (0: unlimited) are those of SLOW, `code` is that of ERROR."""

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
