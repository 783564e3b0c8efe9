"""Remove a lab by its name alone, from what is on disk and in the kernel: after any crash, and any number of times."""

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

# Seconds until the kernel has taken the namespaces apart.
_FREED = 5.0
# Lies in the labs' folder when the first lab found no /run/netns: the last one then removes it again.
_MADE_NETNS = ".made-run-netns"


def namespaces(lab: str) -> list[str]:
    """The lab's named network namespaces."""
    return [name for name in netns.names() if name.startswith(names.netns_prefix(lab))]


def leftovers(lab: str) -> list[str]:
    """What exists of the lab, as words for a person; empty: nothing does."""
    found = [f"namespace {name}" for name in namespaces(lab)]
    if groups.lab_root(lab).is_dir():
        found.append(f"cgroup {groups.lab_root(lab)}")
    if names.lab_dir(lab).exists():
        found.append(f"folder {names.lab_dir(lab)}")
    return found


def labs() -> list[str]:
    """Every lab of which something exists."""
    found = set(groups.labs())
    if names.RUN_ROOT.is_dir():
        found |= {path.name for path in names.RUN_ROOT.iterdir() if path.is_dir()}
    found |= {name.split(".")[1] for name in netns.names() if name.startswith("nn.") and name.count(".") >= 2}
    return sorted(found)


def remember_host() -> None:
    """Before the first lab makes anything: note what the last one has to take away again."""
    names.RUN_ROOT.mkdir(parents=True, exist_ok=True)
    if not names.NETNS_ROOT.exists():
        (names.RUN_ROOT / _MADE_NETNS).touch()


def down(lab: str) -> bool:
    """Remove everything of the lab; False when there was nothing.

    The daemon goes first, or it would start again what is being removed. Raises CannotRunError when a process does not
    end, OSError when the kernel refuses.
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
    """The last lab is gone: remove the folders above, unless an agent or somebody's namespace lives in them."""
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
    """End processes that somebody started inside a namespace of ours by other means than `lab exec`."""
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
            with contextlib.suppress(OSError):  # it has just ended
                stat = (folder / "ns/net").stat()
                if (stat.st_dev, stat.st_ino) == wanted:
                    yield int(folder.name)
