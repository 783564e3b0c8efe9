"""Load the objects once, pin everything, and on the next start adopt what is pinned.

The folder is that of nodenet.bpf.pins. `key` in it is a digest of the objects and their configuration, so a restart
with nothing changed loads nothing: it opens the pins. New maps are pinned in maps-new/ until every object has loaded: a
load that fails leaves the node's maps and programs as they were. Two loads at once on one folder are not safe: the
agent holds a lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nodenet.bpf import carry, layout, libbpf, tcx
from nodenet.bpf.pins import Pins, is_bpffs, map_info
from nodenet.errors import CannotRunError

# Programs on the node's end of a pod's veth, with its side: the reverse of the pod's view.
TC_PROGRAMS = {"endpoint_egress": tcx.Side.INGRESS, "endpoint_ingress": tcx.Side.EGRESS}
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
# Every map of ours is named so in the kernel too (at most 15 characters); libbpf's own, such as .rodata, are not.
_MAP_PREFIX = b"nn_"


def softirqs_are_preemptible() -> bool:
    """On PREEMPT_RT a task may lose its CPU to another one with bottom halves disabled (from Linux 6.18 on, unless it
    was built with PREEMPT_RT_NEEDS_BH_LOCK). The kernel names itself so in what `uname -v` prints."""
    return "PREEMPT_RT" in os.uname().version


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """struct nn_config of abi.h, and the sizes of maps by name."""

    enforce_policy: bool = True
    redirect_peer: bool = True
    refuse_errno: bool = True
    trace_events: bool = True
    preemptible: bool = field(default_factory=softirqs_are_preemptible)
    kernel_structs: bool = True
    # Of the node's own network namespace: sockets in others are pods'. 0: not known.
    netns_cookie: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        policy = (self.enforce_policy, self.redirect_peer, self.refuse_errno, self.trace_events)
        kernel = (self.preemptible, self.kernel_structs)
        return struct.pack("=6B2xQ", *policy, *kernel, self.netns_cookie)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` did. `adopted`: the pinned programs were right already. `replaced_maps` start empty, except for those
    in `carrying.copied`. After the last program was replaced, `carrying.finish` completes the copies."""

    key: str
    programs: dict[str, int]
    adopted: bool
    carrying: carry.Carrying
    replaced_maps: tuple[str, ...] = ()


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
    adopted = _adopt(pins.progs / key, pins)
    if adopted is None:
        return _load_new(key, objects, config, pins)
    carrying = carry.prepare(pins)
    try:
        carrying.first()
    except OSError as error:
        _close_all(adopted)
        raise CannotRunError(f"the kernel refused a copy of connections: {error.strerror}") from error
    return Loaded(key, adopted, adopted=True, carrying=carrying)


def _load_new(key: str, objects: Mapping[str, Path], config: DatapathConfig, pins: Pins) -> Loaded:
    replaced: list[str] = []
    programs: dict[str, int] = {}
    draft = pins.progs / f"{key}-new"
    shutil.rmtree(draft, ignore_errors=True)
    pins.clear_new_maps()
    draft.mkdir()
    pins.new_maps.mkdir()
    what = ""
    try:
        for name, path in objects.items():
            what = f"{name}.bpf.o"
            programs |= _load_object(path, config, pins, draft, replaced)
        what = "a copy of connections"
        carrying = carry.prepare(pins, replaced)
        carrying.first()
        pins.publish(carrying.names.intersection(replaced))
    except OSError as error:
        _close_all(programs)
        shutil.rmtree(draft, ignore_errors=True)
        pins.clear_new_maps()
        raise CannotRunError(f"the kernel refused {what}: {error.strerror}") from error
    folder = pins.progs / key
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return Loaded(key, programs, adopted=False, carrying=carrying, replaced_maps=tuple(replaced))


def _adopt(folder: Path, pins: Pins) -> dict[str, int] | None:
    """The pinned programs of a build, if all are there and use the maps that are pinned now: after another build with
    other sizes ran meanwhile, its maps are the pinned ones, and these programs would read maps that nobody writes."""
    wanted = [*TC_PROGRAMS, *CGROUP_PROGRAMS]
    if not all((folder / name).exists() for name in wanted):
        return None
    pinned = {map_info(path).id for path in pins.maps.iterdir()}
    programs = {name: libbpf.obj_get(str(folder / name)) for name in wanted}
    used = {number for fd in programs.values() for number in libbpf.map_ids(fd)}
    if any(libbpf.map_name(number).startswith(_MAP_PREFIX) for number in used - pinned):
        _close_all(programs)
        return None
    return programs


def _load_object(path: Path, config: DatapathConfig, pins: Pins, draft: Path, replaced: list[str]) -> dict[str, int]:
    lib = libbpf.lib()
    # Where the check of offloads is off, the kernel need not have BTF. The object's own description of the kernel's
    # structs takes its place: the verifier removes the code that would use it.
    options = None if config.kernel_structs else libbpf.open_options(btf_path=path)
    handle = lib.bpf_object__open_file(str(path).encode(), options)
    if not handle:
        libbpf.check(None, f"open {path}")
    try:
        for pointer in _each(lib.bpf_object__next_map, handle):
            _prepare_map(handle, pointer, config, pins, replaced)
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


def _prepare_map(handle: int, pointer: int, config: DatapathConfig, pins: Pins, replaced: list[str]) -> None:
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
    if not path.exists() or not _same_shape(handle, pointer, path):
        # The old programs keep the old map until they are replaced; the new one is filled before that.
        if path.exists() and name not in replaced:
            replaced.append(name)
        path = pins.new_maps / name
    libbpf.check(lib.bpf_map__set_pin_path(pointer, str(path).encode()), f"pin path of {name}")


def _same_shape(handle: int, pointer: int, path: Path) -> bool:
    """Whether new programs can use the pinned map: its type, sizes and flags are right, and its records have the same
    members at the same places."""
    lib = libbpf.lib()
    info = map_info(path)
    wanted = tuple(
        getattr(lib, f"bpf_map__{field}")(pointer)
        for field in ("type", "key_size", "value_size", "max_entries", "map_flags")
    )
    if wanted != (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags):
        return False
    # Without a description of its types the sizes have to do.
    pinned = layout.of_map(info)
    return pinned is None or pinned == layout.of_object(handle, pointer)


def attach_cgroup(loaded: Loaded, cgroup: Path, pins: Pins) -> list[str]:
    """Attach the socket programs with pinned links; what is right already is left alone. Returns what changed."""
    lib = libbpf.lib()
    changed: list[str] = []
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        cgroup_id = os.fstat(fd).st_ino
        for name, attach_type in CGROUP_PROGRAMS.items():
            path = pins.links / name
            where = (cgroup_id, attach_type)
            if path.exists() and _adopt_link(path, loaded.programs[name], where, changed, name):
                continue
            link = libbpf.check(lib.bpf_link_create(loaded.programs[name], fd, attach_type, None), f"attach {name}")
            try:
                libbpf.check(lib.bpf_obj_pin(link, str(path).encode()), f"pin link {name}")
            finally:
                # Without a pin the program is detached with this descriptor: no half of an attachment stays.
                os.close(link)
            changed.append(name)
    finally:
        os.close(fd)
    return changed


def _adopt_link(path: Path, program: int, where: tuple[int, int], changed: list[str], name: str) -> bool:
    """Make a pinned link right. False: it is not at this cgroup and attach type (detached, or its cgroup is gone, or it
    is something else); it was unpinned."""
    link = libbpf.obj_get(str(path))
    try:
        info = libbpf.info(link, libbpf.CgroupLinkInfo)
        if (info.cgroup_id, info.attach_type) != where:
            path.unlink()
            return False
        if info.prog_id != libbpf.info(program, libbpf.ProgInfo).id:
            libbpf.check(libbpf.lib().bpf_link_update(link, program, None), f"update link {name}")
            changed.append(name)
        return True
    finally:
        os.close(link)


@dataclass(frozen=True, slots=True)
class PinCheck:
    """What `check_pins` found: names that were pinned again, and sentences about what it leaves to a person."""

    repinned: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_pins(loaded: Loaded, maps: Mapping[str, int], pins: Pins) -> PinCheck:
    """Compare the pins with what this process has open (`maps`: descriptors by name). A pin that is gone is made again:
    the next agent starts from it. One that leads to something else is only reported: a person put it there. Programs
    and maps in use do not need pins; the links of the socket programs do (attach_cgroup)."""
    if not is_bpffs(pins.root):
        words = f"{pins.root} is not in a BPF file system any more: programs on pods' interfaces go on, Services at the"
        return PinCheck(problems=(f"{words} socket do not; mount it again and restart the agent",))
    repinned: list[str] = []
    problems: list[str] = []
    wanted = {f"map {name}": (fd, pins.map(name)) for name, fd in maps.items()}
    wanted |= {f"program {name}": (fd, pins.progs / loaded.key / name) for name, fd in loaded.programs.items()}
    for name, (fd, path) in wanted.items():
        try:
            if _is_pinned(fd, path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(path).encode()), f"pin {name}")
            repinned.append(name)
        except OSError as error:
            problems.append(f"{name}: its pin {path} is wrong: {error.strerror}")
    return PinCheck(tuple(repinned), tuple(problems))


def _is_pinned(fd: int, path: Path) -> bool:
    """Whether the object behind a descriptor is pinned there; False when nothing is. Raises OSError when something
    else is."""
    try:
        pinned = libbpf.obj_get(str(path))
    except FileNotFoundError:
        return False
    try:
        # Maps and programs tell their number at the same place (struct bpf_map_info, bpf_prog_info); other kinds of
        # object have another type there.
        mine, other = libbpf.info(fd, libbpf.MapInfo), libbpf.info(pinned, libbpf.MapInfo)
    finally:
        os.close(pinned)
    if (mine.type, mine.id) != (other.type, other.id):
        raise FileExistsError(errno.EEXIST, "it leads to another object")
    return True


def prune(loaded: Loaded, pins: Pins) -> None:
    """Forget pinned programs of other builds, once nothing is attached from them."""
    for folder in pins.progs.iterdir():
        if folder.name != loaded.key:
            shutil.rmtree(folder, ignore_errors=True)


def close(loaded: Loaded) -> None:
    loaded.carrying.close()
    _close_all(loaded.programs)


def _close_all(programs: Mapping[str, int]) -> None:
    for fd in programs.values():
        with contextlib.suppress(OSError):
            os.close(fd)


def program_id(fd: int) -> int:
    """The kernel's number of a program, as `bpftool prog` shows it."""
    return int(libbpf.info(fd, libbpf.ProgInfo).id)
