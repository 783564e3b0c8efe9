"""The layout of a node's bpffs folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nodenet.bpf import libbpf
from nodenet.errors import CannotRunError
from nodenet.mounttable import filesystem_of


class Pins:
    """maps/<name>, progs/<key>/<program>, links/<program>. During a load also maps-new/<name>. From the replacement of
    maps until the end of the switch also maps-old/<name>-<id of the map>. state/<number>: the number of
    nodenet/tables/state.py of the version that made the maps. sizes/<key>-<setting>: what decided the size of maps
    (nodenet/agent/sizes.py)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.maps = root / "maps"
        # bpffs does not allow dots in names, hence the hyphen.
        self.new_maps = root / "maps-new"
        self.old_maps = root / "maps-old"
        self.progs = root / "progs"
        self.links = root / "links"
        self._state = root / "state"
        self._sizes = root / "sizes"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that is ever in the root."""
        return self.maps, self.new_maps, self.old_maps, self.progs, self.links, self._state, self._sizes

    def make(self) -> None:
        """Create the folders. Raises CannotRunError if the root is not in a bpffs."""
        require_bpffs(self.root)
        for folder in (self.maps, self.progs, self.links):
            folder.mkdir(parents=True, exist_ok=True)

    def state(self) -> int:
        """The number of the state in the maps; 0 if there are none, or if a version without numbers made them."""
        found = [0]
        with contextlib.suppress(FileNotFoundError):
            found += [int(path.name) for path in self._state.iterdir() if path.name.isdecimal()]
        return max(found)

    def set_state(self, number: int) -> None:
        """Store the number as the name of a folder: a bpffs has no files. A crash in between leaves the larger one."""
        (self._state / str(number)).mkdir(parents=True, exist_ok=True)
        for path in self._state.iterdir():
            if path.name != str(number):
                path.rmdir()

    def sizes(self) -> dict[str, str]:
        """The stored settings of sizes, by key; empty if there are none. After a crash within `set_sizes` a key may
        have two: then neither counts."""
        found: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._sizes.iterdir():
                key, _, setting = path.name.rpartition("-")
                found[key] = setting if key not in found else ""
        return found

    def set_sizes(self, settings: Mapping[str, str]) -> None:
        """Store settings of sizes as names of folders."""
        names = {f"{key}-{setting}" for key, setting in settings.items()}
        for name in names:
            (self._sizes / name).mkdir(parents=True, exist_ok=True)
        for path in self._sizes.iterdir():
            if path.name not in names:
                path.rmdir()

    def map(self, name: str) -> Path:
        return self.maps / name

    def clear_new_maps(self) -> None:
        """Unpin the new maps of a load that was interrupted or failed."""
        shutil.rmtree(self.new_maps, ignore_errors=True)

    def publish(self, kept: Iterable[str], gone: Iterable[str] = ()) -> None:
        """Replace the old maps by the new ones, and unpin the maps that this version does not have any more (`gone`).
        Old maps with `kept` names stay pinned in maps-old, because attached programs still write them. They are pinned
        there before the replacement, so that a crash loses none of them."""
        for name in kept:
            self._keep(name)
        for path in self.new_maps.iterdir():
            path.rename(self.maps / path.name)
        self.new_maps.rmdir()
        for name in gone:
            self.map(name).unlink()

    def _keep(self, name: str) -> None:
        self.old_maps.mkdir(exist_ok=True)
        with opened(self.map(name)) as fd:
            path = self.old_maps / f"{name}-{libbpf.info(fd, libbpf.MapInfo).id}"
            # It may be pinned already, by a load that was interrupted after this step.
            if not path.exists():
                libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(path).encode()), f"pin {path.name}")

    def replaced(self) -> list[tuple[str, Path]]:
        """Names and paths of the maps in maps-old, the newest first."""
        found: list[tuple[int, str, Path]] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.old_maps.iterdir():
                name, _, number = path.name.rpartition("-")
                if number.isdecimal():
                    found.append((int(number), name, path))
        return [(name, path) for _, name, path in sorted(found, reverse=True)]

    def clear_old_maps(self) -> None:
        """Unpin the old maps. Call it when no program writes them any more and their content is copied."""
        shutil.rmtree(self.old_maps, ignore_errors=True)

    def remove(self) -> None:
        """Unpin everything. Programs that are attached to interfaces stay attached."""
        shutil.rmtree(self.root, ignore_errors=True)


def require_bpffs(root: Path) -> None:
    """Raises CannotRunError if the folder is not in a bpffs. It need not exist."""
    if not is_bpffs(root):
        raise CannotRunError(
            f"bpffs: {root} is not in a BPF file system", "nodenet node init, or mount -t bpf bpf /sys/fs/bpf"
        )


def is_bpffs(path: Path) -> bool:
    return filesystem_of(path) == "bpf"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a pinned object, closed at the end of the block. Raises OSError."""
    fd = libbpf.obj_get(str(path))
    try:
        yield fd
    finally:
        os.close(fd)


def map_info(path: Path) -> libbpf.MapInfo:
    """The kernel's information about a pinned map. Meaningless for other objects. Raises OSError."""
    with opened(path) as fd:
        found: libbpf.MapInfo = libbpf.info(fd, libbpf.MapInfo)
        return found
