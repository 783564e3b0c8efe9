"""Removes a lab, given only its name, from what it finds on disk and in the kernel. Works after any crash, and may be
repeated."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from nodenet.lab import groups, names, pins
from nodenet.link import cgroups, mounts, netns

log = logging.getLogger(__name__)

# Seconds to wait until the kernel has freed the eBPF objects.
_FREED = 5.0
# A marker in the labs' folder: the first lab created /run/netns, so the removal of the last lab deletes it.
_MADE_NETNS = ".made-run-netns"


def namespaces(lab: str) -> list[str]:
    """Names of the lab's network namespaces."""
    return [name for name in netns.names() if name.startswith(names.netns_prefix(lab))]


def leftovers(lab: str) -> list[str]:
    """Descriptions of what exists of the lab, for messages. Empty if nothing does."""
    found = [f"namespace {name}" for name in namespaces(lab)]
    if groups.lab_root(lab).is_dir():
        found.append(f"cgroup {groups.lab_root(lab)}")
    if names.lab_dir(lab).exists():
        found.append(f"folder {names.lab_dir(lab)}")
    return found


def labs() -> list[str]:
    """Names of all labs of which something exists."""
    found = set(groups.labs())
    if names.RUN_ROOT.is_dir():
        found |= {path.name for path in names.RUN_ROOT.iterdir() if path.is_dir()}
    found |= {name.split(".")[1] for name in netns.names() if name.startswith("nn.") and name.count(".") >= 2}
    return sorted(found)


def remember_host() -> None:
    """Call it before the first lab creates anything. Notes what the removal of the last lab must delete."""
    names.RUN_ROOT.mkdir(parents=True, exist_ok=True)
    if not names.NETNS_ROOT.exists():
        (names.RUN_ROOT / _MADE_NETNS).touch()


def down(lab: str) -> bool:
    """Remove everything of the lab. Returns False if there was nothing.

    The daemon is killed first, because it would restart what is being removed. Raises CannotRunError if a process does
    not end, OSError if the kernel refuses.
    """
    names.check_lab_name(lab)
    found = bool(leftovers(lab))
    cgroups.remove(groups.lab_root(lab) / groups.CONTROL)
    cgroups.remove(groups.lab_root(lab))
    for name in namespaces(lab):
        end_visitors(name)
    mounted = mounts.mount_points(names.lab_dir(lab))
    objects = pins.pinned(mounted)
    for target in mounted:
        mounts.unmount(target)
    for name in namespaces(lab):
        netns.delete(name)
    if not pins.wait_gone(objects, _FREED):
        log.warning("the kernel has not freed every eBPF object within %g s", _FREED)
    if names.lab_dir(lab).exists():
        shutil.rmtree(names.lab_dir(lab))
    if not labs():
        _forget_host()
    return found


def _forget_host() -> None:
    """After the last lab: remove the parent folders, unless an agent or a foreign namespace uses them."""
    marker = names.RUN_ROOT / _MADE_NETNS
    if marker.exists():
        marker.unlink()
        if names.NETNS_ROOT.is_dir() and not any(names.NETNS_ROOT.iterdir()):
            for target in mounts.mount_points(names.NETNS_ROOT):
                mounts.unmount(target)
            with contextlib.suppress(OSError):
                names.NETNS_ROOT.rmdir()
    for folder in (names.RUN_ROOT, names.RUN_ROOT.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def end_visitors(name: str | Path) -> None:
    """Kill all processes in one of our namespaces. After the cgroups are gone these are foreign ones, for example of
    `ip netns exec`."""
    try:
        wanted = netns.inode(name)
    except FileNotFoundError:
        return
    for pid in _processes_in(wanted):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes_in(wanted: tuple[int, int]) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended in the meantime
                stat = (folder / "ns/net").stat()
                if (stat.st_dev, stat.st_ino) == wanted:
                    yield int(folder.name)
