"""Reads the mounts of this process (proc(5), /proc/PID/mounts and mountinfo). A mount point may contain any bytes."""

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
        yield Mount(Path(_text(fields[1])), fields[2].decode(errors="replace"))


class RootedMount(NamedTuple):
    """One line of mountinfo. `root`: the folder of the file system that is mounted."""

    root: str
    target: Path
    fstype: str


def rooted_mounts(table: Path = Path("/proc/self/mountinfo")) -> Iterator[RootedMount]:
    """Like `mounts`, with the root of each."""
    for line in table.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        yield RootedMount(_text(fields[3]), Path(_text(fields[4])), after.split(b" ")[0].decode(errors="replace"))


def _text(field: bytes) -> str:
    # Space, tab, newline and backslash are written as octal escapes.
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))


def filesystem_of(path: Path) -> str:
    """The type of the file system that contains a path; "" if unknown."""
    found, kind = Path(), ""
    # The agent asks every second: resolve the path once, not for each mount.
    path = path.resolve()
    folders = {path, *path.parents}
    for mount in mounts():
        # A later mount at the same place covers the earlier one.
        if mount.target in folders and len(mount.target.parts) >= len(found.parts):
            found, kind = mount
    return kind
