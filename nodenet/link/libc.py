"""System calls without a function in Python 3.11. Each returns 0 or the errno.

The self-contained plugin (nodenet/cni/bundle.py) contains setns in its builtin module `_nodenet`. Elsewhere ctypes
calls libc, which is loaded at the first call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

try:
    import _nodenet as _builtin  # type: ignore[import-not-found]
except ImportError:
    _builtin = None


def setns(fd: int, kind: int) -> int:
    """setns(2): move the calling thread into a namespace."""
    return _call("setns", fd, kind)


def unshare(flags: int) -> int:
    """unshare(2), for the calling thread."""
    return _call("unshare", flags)


def mount(source: bytes, target: bytes, flags: int, kind: bytes = b"none") -> int:
    """mount(2). Bind mounts and changes of propagation ignore `kind`, the type of the file system."""
    return _call("mount", source, target, kind, flags, None)


def umount2(target: bytes, flags: int) -> int:
    """umount2(2)."""
    return _call("umount2", target, flags)


def _call(name: str, *args: object) -> int:
    if _builtin is not None and name == "setns":
        code: int = _builtin.setns(*args)
        return code
    import ctypes

    return 0 if getattr(_libc(), name)(*args) == 0 else ctypes.get_errno()


@cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
