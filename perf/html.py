"""One page with plots."""

from __future__ import annotations

from typing import Any


def require() -> None: ...
def page(report: dict[str, Any]) -> str:
    return ""
