"""resolv.conf(5) as the `dns` part of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_resolv_conf(path: Path) -> dict[str, Any]:
    """The nameservers, domain, search and options of the file. Raises OSError."""
    found: dict[str, Any] = {}
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if not words or words[0][0] in "#;" or len(words) < 2:
            continue
        if words[0] == "nameserver":
            found.setdefault("nameservers", []).append(words[1])
        elif words[0] == "domain":
            found["domain"] = words[1]
        elif words[0] in ("search", "options"):
            found[words[0]] = [*found.get(words[0], []), *words[1:]]
    return found
