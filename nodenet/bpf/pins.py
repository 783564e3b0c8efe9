"""The layout of a node's bpffs folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nodenet.bpf import libbpf
from nodenet.errors import CannotRunError
from nodenet.mounttable import filesystem_of


class Pins:
    """maps/<name>, progs/<key>/<program>, links/<program>; during a load maps-new/<name>, and from the moment when new
    maps take the place of others until the end of the switch maps-old/<name>-<number of the map>."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.maps = root / "maps"
        # bpffs allows no dot in a name.
        self.new_maps = root / "maps-new"
        self.old_maps = root / "maps-old"
        self.progs = root / "progs"
        self.links = root / "links"

    def make(self) -> None:
        """Raises CannotRunError where the folder is not in a bpffs."""
        for folder in (self.maps, self.progs, self.links):
            folder.mkdir(parents=True, exist_ok=True)
        if not is_bpffs(self.root):
            for folder in (self.links, self.progs, self.maps):
                folder.rmdir()
            raise CannotRunError(f"{self.root} is not in a BPF file system", "mount -t bpf bpf /sys/fs/bpf")

    def map(self, name: str) -> Path:
        return self.maps / name

    def clear_new_maps(self) -> None:
        """Forget the new maps of a load that did not end."""
        shutil.rmtree(self.new_maps, ignore_errors=True)

    def publish(self, kept: Iterable[str]) -> None:
        """New maps take the place of the old ones. The old ones of the `kept` names stay pinned in maps-old: programs
        that are attached write them. A crash between two steps loses no map that is not in maps-old by then."""
        for name in kept:
            self._keep(name)
        for path in self.new_maps.iterdir():
            path.rename(self.maps / path.name)
        self.new_maps.rmdir()

    def _keep(self, name: str) -> None:
        self.old_maps.mkdir(exist_ok=True)
        with opened(self.map(name)) as fd:
            path = self.old_maps / f"{name}-{libbpf.info(fd, libbpf.MapInfo).id}"
            # A load that was interrupted after this step has pinned it already.
            if not path.exists():
                libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(path).encode()), f"pin {path.name}")

    def replaced(self) -> list[tuple[str, Path]]:
        """Name and path of the maps in maps-old, the newest first."""
        found: list[tuple[int, str, Path]] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.old_maps.iterdir():
                name, _, number = path.name.rpartition("-")
                if number.isdecimal():
                    found.append((int(number), name, path))
        return [(name, path) for _, name, path in sorted(found, reverse=True)]

    def clear_old_maps(self) -> None:
        """Nothing writes them any more, and what they held is copied."""
        shutil.rmtree(self.old_maps, ignore_errors=True)

    def remove(self) -> None:
        """Unpin everything; programs that are attached elsewhere stay attached."""
        shutil.rmtree(self.root, ignore_errors=True)


def is_bpffs(path: Path) -> bool:
    return filesystem_of(path) == "bpf"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a pinned object. Raises OSError."""
    fd = libbpf.obj_get(str(path))
    try:
        yield fd
    finally:
        os.close(fd)


def map_info(path: Path) -> libbpf.MapInfo:
    """What the kernel says of a pinned map; of another object it is meaningless. Raises OSError."""
    with opened(path) as fd:
        found: libbpf.MapInfo = libbpf.info(fd, libbpf.MapInfo)
        return found
