"""Finds all network namespaces of this node and their addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nodenet.endpoint import IPAddress
from nodenet.link import addresses
from nodenet.link.handle import Link, LinkError

_PROC = Path("/proc")


def namespaces(strict: bool = True) -> Iterator[Path]:
    """One path to each namespace: those of processes, and mounted ones.

    A process may hide its namespace even from root. `strict`: raise PermissionError then; else skip it.
    """
    seen: set[tuple[int, int]] = set()
    for path in (*_of_processes(), *_mounted()):
        try:
            found = path.stat()
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue
        except PermissionError:
            if strict:
                raise
            continue
        key = (found.st_dev, found.st_ino)
        if key not in seen:
            seen.add(key)
            yield path


def addresses_everywhere(strict: bool = True) -> frozenset[IPAddress] | None:
    """All addresses of all namespaces; None if a namespace could not be read, because then an address may be in use
    unseen."""
    found: set[IPAddress] = set()
    try:
        for path in namespaces(strict):
            try:
                with Link(path) as link:
                    found.update(entry.ip for entry in addresses.local(link))
            except FileNotFoundError:
                continue
    except (OSError, LinkError):
        return None
    return frozenset(found)


def _of_processes() -> Iterator[Path]:
    for name in os.listdir(_PROC):  # noqa: PTH208
        if name.isdigit():
            yield _PROC / name / "ns/net"


def _mounted() -> Iterator[Path]:
    """Mount points of namespaces (proc(5), mountinfo): in /run/netns and in the folders of runtimes."""
    for line in (_PROC / "self/mountinfo").read_bytes().splitlines():
        fields, _, kind = line.partition(b" - ")
        if kind.startswith(b"nsfs ") and b"net:[" in fields.split()[3]:
            yield Path(os.fsdecode(_unescaped(fields.split()[4])))


def _unescaped(text: bytes) -> bytes:
    """Decode a path of mountinfo: the kernel writes space, tab, newline and backslash as a backslash and three octal
    digits, and all other bytes unchanged."""
    first, *rest = text.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
