"""JSON that somebody else wrote: a configuration, another plugin's answer."""

from __future__ import annotations

import json
from typing import Any

# A configuration with a prevResult is some six deep. What is read is written again, by code that calls itself.
_DEEPEST = 100


def loads(text: bytes) -> Any:
    """Raises ValueError for what is no JSON text as RFC 8259 has it between systems: UTF-8, without a byte order mark.

    Given bytes, Python's own `loads` guesses UTF-16 and UTF-32 too: other readers of the same text would not, and the
    plugin alone has no codec for a byte order mark.
    """
    try:
        found = json.loads(text.decode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count(b"[") + text.count(b"{") > _DEEPEST:
        _check_depth(found)
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} deep")
