"""Mounts of file systems and folders, and mount namespaces. Raises OSError that names the target."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nodenet.link import libc
from nodenet.mounttable import mounts

_CLONE_NEWNS = 0x00020000
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18
_MS_SLAVE = 1 << 19
_MNT_DETACH = 2


def mount(source: str | Path, target: Path, kind: str, flags: int = 0) -> None:
    if code := libc.mount(os.fsencode(source), os.fsencode(target), flags, kind.encode()):
        raise _error(code, f"mount of {kind or 'a folder'}", target)


def bind(source: Path, target: Path) -> None:
    mount(source, target, "", _MS_BIND)


def unmount(target: Path) -> None:
    """Unmount lazily: processes with open files there can still use them. No error if nothing is mounted there."""
    code = libc.umount2(os.fsencode(target), _MNT_DETACH)
    if code not in (0, errno.EINVAL, errno.ENOENT):
        raise _error(code, "umount", target)


def mount_points(below: Path) -> list[Path]:
    """Mount points at or under `below`, deepest first."""
    paths = [mount.target for mount in mounts() if mount.target.is_relative_to(below)]
    return sorted(paths, key=lambda path: len(path.parts), reverse=True)


def own(*, receives: bool = False) -> None:
    """Move the calling thread into its own mount namespace; its mounts do not propagate to the host.

    `receives`: later mounts and unmounts of the host on shared mounts propagate to this namespace.
    """
    if code := libc.unshare(_CLONE_NEWNS):
        raise _error(code, "unshare of mounts", Path("/"))
    mount("none", Path("/"), "", _MS_REC | (_MS_SLAVE if receives else _MS_PRIVATE))


def _error(code: int, what: str, target: Path) -> OSError:
    return OSError(code, f"{what}: {os.strerror(code)}", str(target))
