"""Measures the kernel memory of iptables and nftables exactly. The kernel charges their objects (GFP_KERNEL_ACCOUNT) to
the memory cgroup of the process that made them. So the tool runs in its own cgroup, and the charge of that cgroup is
read after the tool has ended while its rules exist.

As far as we know, this does not include the per-CPU counters of xtables (16 bytes per rule and CPU) and the buckets of
the hash tables of nftables' sets (8 bytes each).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nodenet.errors import CannotRunError
from nodenet.link import cgroups
from perf.modes import Mode
from perf.node import CGROUP_PREFIX

# Fields of memory.stat (bytes) to add. Dentries and inodes (slab_reclaimable), stacks and page tables belong to the
# tool, so they are left out.
PARTS = ("slab_unreclaimable", "vmalloc", "percpu")
CHARGED = "charged to the tool's cgroup"
MAPS = "accounted to the maps"
# memory.stat has this field since Linux 5.18, which is also the first version that charges nf_tables.
_SINCE_5_18 = "kernel"
_HINT = "a virtual machine has it: --vm 6.12 --workloads memory"
# Seconds to wait for a killed nft, which stays in the kernel until its load is complete.
_LAST_PROCESS = 120.0


def root() -> Path:
    """The cgroup below which child groups can use the memory controller. Raises CannotRunError with the reason if there
    is none."""
    found = cgroups.mount_point()
    if "memory" not in _words(found / "cgroup.controllers"):
        raise CannotRunError(
            "no exact figure: cgroup v2 has no memory controller on this machine (cgroup v1 has it, or it is off)",
            _HINT,
        )
    if "memory" not in _words(found / "cgroup.subtree_control"):
        raise CannotRunError(
            f"no exact figure: {found} does not hand the memory controller to its child groups",
            _HINT,
        )
    return found


def account(stack: ExitStack, mode: Mode) -> Path | None:
    """A memory cgroup for the tools of a mode, until the stack is closed. None if the mode measures its memory itself.

    Raises CannotRunError with the reason if a cgroup is not possible.
    """
    if mode.kernel_bytes() is not None:
        return None
    if mode.not_charged:
        raise CannotRunError(mode.not_charged)
    return stack.enter_context(group())


@contextmanager
def group() -> Iterator[Path]:
    """A memory cgroup for one load. Raises CannotRunError if it is not possible."""
    path = cgroups.make(root() / f"{CGROUP_PREFIX}{os.getpid()}-memory")
    try:
        if _SINCE_5_18 not in stat(path):
            raise CannotRunError("no exact figure: Linux before 5.18 does not charge nf_tables to a cgroup")
        yield path
    finally:
        cgroups.remove(path, timeout=_LAST_PROCESS)


def stat(path: Path) -> dict[str, int]:
    """The content of a group's memory.stat."""
    lines = (path / "memory.stat").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def charged(path: Path) -> int:
    """Bytes that are currently charged to the group for kernel objects."""
    found = stat(path)
    return sum(found[part] for part in PARTS)


def _words(path: Path) -> list[str]:
    return path.read_text().split()
