"""Reads JSON from other programs: a configuration, another plugin's result."""

from __future__ import annotations

import json
from typing import Any

# A configuration with a prevResult has some six levels. The limit protects the recursive encoder that writes the value
# again.
_MAX_DEPTH = 100


def loads(text: bytes) -> Any:
    """Raises ValueError for text that is not JSON as RFC 8259 requires it between systems: UTF-8 without a byte order
    mark.

    Python's own `loads` also detects UTF-16 and UTF-32 in bytes. Other readers of the same text do not, and the
    standalone plugin has no codec for a byte order mark.
    """
    try:
        found = json.loads(text.decode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count(b"[") + text.count(b"{") > _MAX_DEPTH:
        _check_depth(found)
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {_MAX_DEPTH} deep")
