"""mount(2), umount2(2) and unshare(2), for which Python 3.11 has no call. Raises OSError that names the target."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from nodenet.mounttable import mounts

_CLONE_NEWNS = 0x00020000
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(source: str | Path, target: Path, kind: str, flags: int = 0) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, None) != 0:
        raise _error(f"mount of {kind or 'a folder'}", target)


def bind(source: Path, target: Path) -> None:
    mount(source, target, "", _MS_BIND)


def unmount(target: Path) -> None:
    """Lazily: what still has files open there keeps them. Nothing mounted there is no error."""
    absent = (errno.EINVAL, errno.ENOENT)
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0 and ctypes.get_errno() not in absent:
        raise _error("umount", target)


def mount_points(below: Path) -> list[Path]:
    """Mount points at or under `below`, deepest first."""
    paths = [mount.target for mount in mounts() if mount.target.is_relative_to(below)]
    return sorted(paths, key=lambda path: len(path.parts), reverse=True)


def private() -> None:
    """Give the calling process a mount namespace of its own, from which nothing reaches the host's."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _error("unshare of mounts", Path("/"))
    mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)


def _error(what: str, target: Path) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}", str(target))
