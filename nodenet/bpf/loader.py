"""Load the objects once, pin everything, and on the next start adopt what is pinned.

In the node's bpffs folder: maps/<name>, progs/<key>/<program>, links/<program>. `key` is a digest of the objects and
their configuration, so a restart with nothing changed loads nothing: it opens the pins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nodenet.bpf import libbpf
from nodenet.errors import CannotRunError

TC_PROGRAMS = ("endpoint_egress", "endpoint_ingress")
# Programs on the cgroup with their enum bpf_attach_type.
CGROUP_PROGRAMS = {
    "sock_connect4": 10,
    "sock_connect6": 11,
    "sock_sendmsg4": 14,
    "sock_sendmsg6": 15,
    "sock_recvmsg4": 19,
    "sock_recvmsg6": 20,
    "sock_getpeer4": 29,
    "sock_getpeer6": 30,
}
_CONFIG_SECTION = ".rodata.config"


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """struct nn_config of abi.h, and the sizes of maps by name."""

    enforce_policy: bool = True
    redirect_peer: bool = True
    refuse_errno: bool = True
    trace_events: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        return bytes((self.enforce_policy, self.redirect_peer, self.refuse_errno, self.trace_events))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` did. `adopted`: the pinned programs were right already. `replaced_maps` start empty."""

    key: str
    programs: dict[str, int]
    adopted: bool
    replaced_maps: tuple[str, ...] = ()


class Pins:
    """The layout of a node's bpffs folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.maps = root / "maps"
        self.progs = root / "progs"
        self.links = root / "links"

    def make(self) -> None:
        """Raises CannotRunError where the folder is not in a bpffs."""
        for folder in (self.maps, self.progs, self.links):
            folder.mkdir(parents=True, exist_ok=True)
        if not _is_bpffs(self.root):
            for folder in (self.links, self.progs, self.maps):
                folder.rmdir()
            raise CannotRunError(f"{self.root} is not in a BPF file system", "mount -t bpf bpf /sys/fs/bpf")

    def map(self, name: str) -> Path:
        return self.maps / name

    def remove(self) -> None:
        """Unpin everything; programs that are attached elsewhere stay attached."""
        shutil.rmtree(self.root, ignore_errors=True)


def _is_bpffs(path: Path) -> bool:
    best, kind = "", ""
    target = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split()
        if (target + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, fstype
    return kind == "bpf"


def build_key(objects: Mapping[str, Path], config: DatapathConfig) -> str:
    """Digest of what decides the loaded programs."""
    digest = hashlib.sha256(config.pack() + repr(sorted(config.sizes.items())).encode())
    for name, path in sorted(objects.items()):
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def load(objects: Mapping[str, Path], config: DatapathConfig, pins: Pins) -> Loaded:
    """Programs by name, adopted or freshly loaded and pinned. Raises CannotRunError with the verifier's words."""
    pins.make()
    key = build_key(objects, config)
    folder = pins.progs / key
    wanted = [*TC_PROGRAMS, *CGROUP_PROGRAMS]
    if all((folder / name).exists() for name in wanted):
        return Loaded(key, {name: libbpf.obj_get(str(folder / name)) for name in wanted}, adopted=True)
    replaced: list[str] = []
    programs: dict[str, int] = {}
    draft = pins.progs / f"{key}-new"  # bpffs allows no dot in a name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name, path in objects.items():
        try:
            programs |= _load_object(path, config, pins, draft, replaced)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise CannotRunError(f"the kernel refused {name}.bpf.o: {error.strerror}") from error
    draft.rename(folder)
    return Loaded(key, programs, adopted=False, replaced_maps=tuple(replaced))


def _load_object(path: Path, config: DatapathConfig, pins: Pins, draft: Path, replaced: list[str]) -> dict[str, int]:
    lib = libbpf.lib()
    handle = lib.bpf_object__open_file(str(path).encode(), None)
    if not handle:
        libbpf.check(None, f"open {path}")
    try:
        for pointer in _each(lib.bpf_object__next_map, handle):
            _prepare_map(pointer, config, pins, replaced)
        libbpf.check(lib.bpf_object__load(handle), f"load {path.name}")
        programs = {}
        for pointer in _each(lib.bpf_object__next_program, handle):
            name = lib.bpf_program__name(pointer).decode()
            fd = os.dup(lib.bpf_program__fd(pointer))
            libbpf.check(lib.bpf_obj_pin(fd, str(draft / name).encode()), f"pin {name}")
            programs[name] = fd
        return programs
    finally:
        lib.bpf_object__close(handle)


def _each(step: object, handle: int) -> Iterator[int]:
    pointer = step(handle, None)  # type: ignore[operator]
    while pointer:
        yield pointer
        pointer = step(handle, pointer)  # type: ignore[operator]


def _prepare_map(pointer: int, config: DatapathConfig, pins: Pins, replaced: list[str]) -> None:
    lib = libbpf.lib()
    name = lib.bpf_map__name(pointer).decode()
    if lib.bpf_map__is_internal(pointer):
        if name.endswith(_CONFIG_SECTION):
            data = config.pack()
            libbpf.check(lib.bpf_map__set_initial_value(pointer, data, len(data)), f"configuration in {name}")
        return
    if name in config.sizes:
        libbpf.check(lib.bpf_map__set_max_entries(pointer, config.sizes[name]), f"size of {name}")
    path = pins.map(name)
    if path.exists() and not _same_shape(pointer, path):
        # The old programs keep the old map until they are replaced; the new one is filled before that.
        path.unlink()
        replaced.append(name)
    libbpf.check(lib.bpf_map__set_pin_path(pointer, str(path).encode()), f"pin path of {name}")


def _same_shape(pointer: int, path: Path) -> bool:
    lib = libbpf.lib()
    fd = libbpf.obj_get(str(path))
    try:
        info = libbpf.info(fd, libbpf.MapInfo)
    finally:
        os.close(fd)
    wanted = tuple(
        getattr(lib, f"bpf_map__{field}")(pointer)
        for field in ("type", "key_size", "value_size", "max_entries", "map_flags")
    )
    return wanted == (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


def attach_cgroup(loaded: Loaded, cgroup: Path, pins: Pins) -> list[str]:
    """Attach the socket programs with pinned links; what is right already is left alone. Returns what changed."""
    lib = libbpf.lib()
    changed: list[str] = []
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        cgroup_id = os.fstat(fd).st_ino
        for name, attach_type in CGROUP_PROGRAMS.items():
            path = pins.links / name
            if path.exists() and _adopt_link(path, loaded.programs[name], cgroup_id, changed, name):
                continue
            link = libbpf.check(lib.bpf_link_create(loaded.programs[name], fd, attach_type, None), f"attach {name}")
            libbpf.check(lib.bpf_obj_pin(link, str(path).encode()), f"pin link {name}")
            os.close(link)
            changed.append(name)
    finally:
        os.close(fd)
    return changed


def _adopt_link(path: Path, program: int, cgroup_id: int, changed: list[str], name: str) -> bool:
    """Make a pinned link right. False: it is on another cgroup, or its cgroup is gone; it was removed."""
    link = libbpf.obj_get(str(path))
    try:
        info = libbpf.info(link, libbpf.CgroupLinkInfo)
        if info.cgroup_id != cgroup_id:
            path.unlink()
            return False
        if info.prog_id != libbpf.info(program, libbpf.ProgInfo).id:
            libbpf.check(libbpf.lib().bpf_link_update(link, program, None), f"update link {name}")
            changed.append(name)
        return True
    finally:
        os.close(link)


def prune(loaded: Loaded, pins: Pins) -> None:
    """Forget pinned programs of other builds, once nothing is attached from them."""
    for folder in pins.progs.iterdir():
        if folder.name != loaded.key:
            shutil.rmtree(folder, ignore_errors=True)


def close(loaded: Loaded) -> None:
    for fd in loaded.programs.values():
        with contextlib.suppress(OSError):
            os.close(fd)


def program_id(fd: int) -> int:
    """The kernel's number of a program, as `bpftool prog` shows it."""
    return int(libbpf.info(fd, libbpf.ProgInfo).id)
