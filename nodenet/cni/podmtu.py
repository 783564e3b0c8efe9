"""The MTU of pods for a configuration without one: the agent's, which is that of the node's uplink.

The agent writes it to `<run_dir>/pod-mtu` too, for the plugin to use while the agent is not running. A reboot removes
the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nodenet.cni.conf import NetConf
from nodenet.link.smallfile import read

_FILE = "pod-mtu"


def with_mtu(conf: NetConf, run_dir: Path, mtu: Callable[[], int] | None) -> NetConf:
    """The configuration with the MTU that new pods get. It stays 0, the kernel's default, if none is known."""
    if conf.mtu:
        return conf
    found = mtu() if mtu is not None else _stored(run_dir)
    return replace(conf, mtu=found, bridge_follows_mtu=True) if found else conf


def store(run_dir: Path, mtu: int) -> None:
    """Write the file. Raises OSError."""
    temporary = run_dir / f".{_FILE}.new"
    temporary.write_text(f"{mtu}\n")
    temporary.rename(run_dir / _FILE)


def _stored(run_dir: Path) -> int:
    try:
        found = int(read(str(run_dir / _FILE)))
    except (OSError, ValueError):
        return 0
    return found if 68 <= found <= 65535 else 0
