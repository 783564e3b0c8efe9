"""Finds, creates, empties and removes cgroups of the v2 hierarchy."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from nodenet.errors import CannotRunError
from nodenet.mounttable import mounts


def mount_point() -> Path:
    """The mount point of cgroup v2 (on a hybrid layout not /sys/fs/cgroup). Raises CannotRunError if it is not
    mounted."""
    for mount in mounts():
        if mount.fstype == "cgroup2":
            return mount.target
    raise CannotRunError("cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")


def make(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def processes(root: Path) -> list[int]:
    """All processes in the group and its descendants."""
    found: list[int] = []
    for folder, _, _ in os.walk(root):
        try:
            found += [int(line) for line in (Path(folder) / "cgroup.procs").read_text().split()]
        except (FileNotFoundError, OSError):  # a group that is being removed
            continue
    return found


def remove(root: Path, grace: float = 0.0, timeout: float = 10.0) -> None:
    """Terminate all processes below `root` (SIGTERM and `grace` seconds first) and remove the groups. Idempotent.

    Raises CannotRunError if a process survives SIGKILL for `timeout` seconds (one in uninterruptible sleep).
    """
    if not root.is_dir():
        return
    if grace:
        _signal(root, signal.SIGTERM)
        _wait_empty(root, grace)
    deadline = time.monotonic() + timeout
    while not _remove_groups(root):
        if time.monotonic() > deadline:
            raise CannotRunError(f"{root}: processes {processes(root)} did not end after SIGKILL")
        _signal(root, signal.SIGKILL)
        _wait_empty(root, 0.2)


def _signal(root: Path, number: signal.Signals) -> None:
    kill = root / "cgroup.kill"
    if number is signal.SIGKILL and kill.exists():  # Linux 5.14
        kill.write_text("1")
        return
    for pid in processes(root):
        # This process may be in the group.
        if pid != os.getpid():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _wait_empty(root: Path, seconds: float) -> None:
    """Wait until no process is left below `root`, for at most `seconds`. Polls cgroup.events."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if "populated 0" in (root / "cgroup.events").read_text():
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)


def _remove_groups(root: Path) -> bool:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # EBUSY: still populated
            return False
    return True
