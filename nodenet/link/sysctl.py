"""net.* sysctls of a namespace. /proc/sys/net shows the namespace of the thread that opens it."""

from __future__ import annotations

from nodenet.link import netns, smallfile

_ROOT = "/proc/sys/net"


def read(key: str, target: netns.Target | None = None) -> str:
    """The value of "ipv4/ip_forward" and the like (slashes, for interface names may have dots). Raises OSError."""
    if target is not None:
        with netns.inside(target):
            return read(key)
    return smallfile.read(_path(key)).strip()


def write(key: str, value: str | int, target: netns.Target | None = None) -> bool:
    """Set a value; False when it was so already (some sysctls reset others even then). Raises OSError."""
    if target is not None:
        with netns.inside(target):
            return write(key, value)
    path = _path(key)
    if smallfile.read(path).strip() == str(value):
        return False
    # No newline: Linux 6.18.15 takes the number alone and says that one byte less was written.
    smallfile.write(path, str(value))
    return True


def _path(key: str) -> str:
    if ".." in key.split("/"):
        raise ValueError(f"sysctl {key}: not a key below net/")
    return f"{_ROOT}/{key}"
