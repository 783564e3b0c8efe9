"""Every network namespace of this node, by whatever keeps it alive, and the addresses in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nodenet.endpoint import IPAddress
from nodenet.link import addresses
from nodenet.link.handle import Link, LinkError

_PROC = Path("/proc")


def namespaces(strict: bool = True) -> Iterator[Path]:
    """A path to each namespace once: those of processes, and those that are mounted.

    A process may keep its own secret even from root. `strict`: then PermissionError is raised; else it is passed over.
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
    """Every address of every namespace; None when one of them could not be read: then nothing is known of absence."""
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
    """Mount points of namespaces (proc(5), mountinfo): /run/netns and whatever else a runtime uses."""
    for line in (_PROC / "self/mountinfo").read_bytes().splitlines():
        fields, _, kind = line.partition(b" - ")
        if kind.startswith(b"nsfs ") and b"net:[" in fields.split()[3]:
            yield Path(os.fsdecode(_unescaped(fields.split()[4])))


def _unescaped(text: bytes) -> bytes:
    """The kernel writes space, tab, newline and backslash of a path as a backslash and three octal digits; all other
    bytes as they are, whatever a path's encoding."""
    first, *rest = text.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
