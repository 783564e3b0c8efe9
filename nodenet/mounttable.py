"""Reads the mounts of this process (proc(5), /proc/PID/mounts). A mount point may contain any bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of the table. In `target`, bytes that are not UTF-8 are surrogates, as with os.fsdecode."""

    target: Path
    fstype: str


def mounts(table: Path = Path("/proc/self/mounts")) -> Iterator[Mount]:
    """The mounts in the order of mounting. Raises OSError if the table cannot be read."""
    for line in table.read_bytes().splitlines():
        fields = line.split(b" ")
        # Space, tab, newline and backslash are written as octal escapes.
        target = _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), fields[1])
        yield Mount(Path(os.fsdecode(target)), fields[2].decode(errors="replace"))


def filesystem_of(path: Path) -> str:
    """The type of the file system that contains a path; "" if unknown."""
    found, kind = Path(), ""
    for mount in mounts():
        # A later mount at the same place covers the earlier one.
        if path.resolve().is_relative_to(mount.target) and len(mount.target.parts) >= len(found.parts):
            found, kind = mount
    return kind
