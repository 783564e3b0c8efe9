"""net.* sysctls of a namespace. /proc/sys/net shows the namespace of the thread that opens it."""

from __future__ import annotations

from pathlib import Path

from nodenet.link import netns

_ROOT = Path("/proc/sys/net")


def read(key: str, target: netns.Target | None = None) -> str:
    """The value of "ipv4/ip_forward" and the like (slashes, for interface names may have dots). Raises OSError."""
    path = _path(key)
    return (path.read_text() if target is None else netns.call(target, path.read_text)).strip()


def write(key: str, value: str | int, target: netns.Target | None = None) -> bool:
    """Set a value; False when it was so already (some sysctls reset others even then). Raises OSError."""
    if target is not None:
        return netns.call(target, write, key, value)
    path = _path(key)
    if path.read_text().strip() == str(value):
        return False
    path.write_text(f"{value}\n")
    return True


def _path(key: str) -> Path:
    if ".." in key.split("/"):
        raise ValueError(f"sysctl {key}: not a key below net/")
    return _ROOT / key
