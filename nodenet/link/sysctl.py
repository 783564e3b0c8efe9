"""net.* sysctls of a namespace. /proc/sys/net shows those of the opening thread's namespace.

In a container /proc/sys is read-only, and no runtime lets a pod mount something over it. There the node's /proc/sys/net
is mounted elsewhere, and the environment variable NODENET_PROC_SYS_NET names the folder.
"""

from __future__ import annotations

import os

from nodenet.link import netns, smallfile

_ROOT = os.environ.get("NODENET_PROC_SYS_NET") or "/proc/sys/net"


def read(key: str, target: netns.Target | None = None) -> str:
    """The value of a key such as "ipv4/ip_forward" (with slashes, because interface names may contain dots). Raises
    OSError."""
    if target is not None:
        with netns.inside(target):
            return read(key)
    return smallfile.read(_path(key)).strip()


def write(key: str, value: str | int, target: netns.Target | None = None) -> bool:
    """Set a value; False if it is set already: it is not written again, because writing some sysctls resets others.
    Raises OSError."""
    if target is not None:
        with netns.inside(target):
            return write(key, value)
    path = _path(key)
    if smallfile.read(path).strip() == str(value):
        return False
    # No newline: Linux 6.18.15 reads only the number and reports one byte less as written.
    smallfile.write(path, str(value))
    return True


def _path(key: str) -> str:
    if ".." in key.split("/"):
        raise ValueError(f"sysctl {key}: not a key below net/")
    return f"{_ROOT}/{key}"
