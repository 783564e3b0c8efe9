"""Waits for the end of the eBPF objects that a lab's agents pinned. The kernel frees them only a moment after the last
pin, link, filter and namespace are gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nodenet.bpf import libbpf
from nodenet.errors import NodenetError

log = logging.getLogger(__name__)

_KINDS = {"map_id": "bpf_map_get_fd_by_id", "prog_id": "bpf_prog_get_fd_by_id"}


class BpfObject(NamedTuple):
    """`kind` is map_id or prog_id, as /proc/PID/fdinfo names it."""

    kind: str
    number: int


def pinned(folders: Iterable[Path]) -> set[BpfObject]:
    """The maps and programs pinned below these bpffs mounts. Empty without libbpf, because then none was loaded."""
    found: set[BpfObject] = set()
    try:
        for folder in folders:
            for path in folder.rglob("*"):
                if not path.is_dir():
                    found.update(_identify(path))
    except (NodenetError, OSError) as error:
        log.debug("pins cannot be read: %s", error)
    return found


def _identify(path: Path) -> Iterator[BpfObject]:
    fd = libbpf.obj_get(str(path))
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in _KINDS:
                yield BpfObject(key, int(value))
    finally:
        os.close(fd)


def wait_gone(objects: Iterable[BpfObject], seconds: float) -> bool:
    """Wait until the kernel has freed all of them. Returns False if it has not after `seconds`."""
    deadline = time.monotonic() + seconds
    for each in objects:
        while _exists(each):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def _exists(each: BpfObject) -> bool:
    fd = getattr(libbpf.lib(), _KINDS[each.kind])(each.number)
    if fd < 0:
        return False
    os.close(fd)
    return True
