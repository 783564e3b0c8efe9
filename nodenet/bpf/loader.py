"""Loads the objects once, pins everything, and adopts the pinned programs and maps at the next start.

The folder is that of nodenet.bpf.pins. The name of the programs' folder is a digest of the objects and their
configuration (`key`). If nothing changed, a restart finds it, opens the pins and loads nothing. New maps are pinned in
maps-new/ until all objects are loaded, so a failed load does not change the node's maps and programs. Two loads at the
same time in one folder are not safe; the agent holds a lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from nodenet import tables
from nodenet.bpf import carry, layout, libbpf, slots, tcx
from nodenet.bpf.pins import Pins, is_bpffs, map_info
from nodenet.errors import CannotRunError

# Programs on the node's end of a pod's veth, with the side of the interface. It is the reverse of the pod's view.
TC_PROGRAMS = {"endpoint_egress": tcx.Side.INGRESS, "endpoint_ingress": tcx.Side.EGRESS}
# Programs on the interfaces that lead out of the node, with the side of the interface.
UPLINK_PROGRAMS = {"netdev_ingress": tcx.Side.INGRESS, "netdev_egress": tcx.Side.EGRESS}
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
# Not attached: the agent runs it.
SOCK_SERVICE = "sock_service"
_CONFIG_SECTION = ".rodata.config"
# All our maps have this prefix in the kernel (names of at most 15 characters). libbpf's internal ones, such as .rodata,
# do not.
_MAP_PREFIX = b"nn_"


def softirqs_are_preemptible() -> bool:
    """True on a PREEMPT_RT kernel, which says so in `uname -v`. There a task may be preempted even with bottom halves
    disabled (from Linux 6.18 on, unless built with PREEMPT_RT_NEEDS_BH_LOCK)."""
    return "PREEMPT_RT" in os.uname().version


@dataclass(frozen=True, slots=True)
class DatapathConfig:
    """The fields of struct nn_config (abi.h), and the sizes of maps by name."""

    enforce_policy: bool = True
    redirect_peer: bool = True
    refuse_errno: bool = True
    trace_events: bool = True
    preemptible: bool = field(default_factory=softirqs_are_preemptible)
    kernel_structs: bool = True
    # Translate Services on the node's own interfaces too.
    serve_uplinks: bool = False
    # The first of the ports that replace those of clients outside, and how many these are.
    source_port: int = 49152
    source_ports: int = 16384
    # The cookie of the node's own network namespace. Sockets in other namespaces belong to pods. 0: unknown.
    netns_cookie: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        policy = (self.enforce_policy, self.redirect_peer, self.refuse_errno, self.trace_events)
        kernel = (self.preemptible, self.kernel_structs, self.serve_uplinks)
        arrays = (tables.CT_SLOT, tables.FRAG_SLOT, tables.NAT_SLOT)
        buckets = (self.sizes.get(one.name, one.size.entries) for one in arrays)
        numbers = (*buckets, self.source_port, self.source_ports, self.netns_cookie)
        return struct.pack("=7BxIIIHHQ", *policy, *kernel, *numbers)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of `load`. `adopted`: the pinned programs were up to date. `replaced_maps` start empty, except for
    those in `carrying.copied`. Call `carrying.finish` after the last program was replaced, to complete the copies."""

    key: str
    programs: dict[str, int]
    adopted: bool
    carrying: carry.Carrying
    replaced_maps: tuple[str, ...] = ()


def build_key(objects: Mapping[str, Path], config: DatapathConfig) -> str:
    """A digest of everything on which the loaded programs depend."""
    digest = hashlib.sha256(config.pack() + repr(sorted(config.sizes.items())).encode())
    for name, path in sorted(objects.items()):
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def load(objects: Mapping[str, Path], config: DatapathConfig, pins: Pins) -> Loaded:
    """Adopt the pinned programs, or load and pin new ones. Raises CannotRunError with the verifier's message."""
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
        slots.adopt_all(pins)
        gone = [path.name for path in pins.maps.iterdir() if path.name not in tables.MAPS]
        pins.publish(carrying.names.intersection([*replaced, *gone]), gone)
    except OSError as error:
        _close_all(programs)
        shutil.rmtree(draft, ignore_errors=True)
        pins.clear_new_maps()
        raise CannotRunError(f"the kernel refused {what}: {error.strerror}") from error
    folder = pins.progs / key
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    taken_over = [tables.SUCCESSORS[name] for name in gone if name in tables.SUCCESSORS]
    return Loaded(key, programs, adopted=False, carrying=carrying, replaced_maps=(*replaced, *taken_over))


def _adopt(folder: Path, pins: Pins) -> dict[str, int] | None:
    """The pinned programs of a build, if all exist and use the maps that are pinned now. If a build with other map
    sizes has run in the meantime, it has replaced the pinned maps, and these programs would read maps that no process
    writes."""
    wanted = [*TC_PROGRAMS, *UPLINK_PROGRAMS, *CGROUP_PROGRAMS, SOCK_SERVICE]
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
    # Without the check of offloads the kernel needs no BTF. The object's own BTF of the kernel's structs replaces it:
    # its content does not matter, because the verifier removes the code that would use it.
    options = None if config.kernel_structs else libbpf.open_options(btf_path=path)
    handle = lib.bpf_object__open_file(str(path).encode(), options)
    if not handle:
        libbpf.check(None, f"open {path}")
    try:
        # A table is replaced together with its slots, so tables come first.
        for pointer in sorted(_each(lib.bpf_object__next_map, handle), key=_is_slots):
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


def _is_slots(pointer: int) -> bool:
    return _slots_of(libbpf.lib().bpf_map__name(pointer).decode()) is not None


def _slots_of(name: str) -> str | None:
    """The table of a map of slots; None for any other map."""
    declared = tables.MAPS.get(name)
    return declared.slots.of if declared is not None and declared.slots is not None else None


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
    if not path.exists() or _slots_of(name) in replaced or not _same_shape(handle, pointer, path):
        # The old programs use the old map until they are replaced. The new map is filled before that.
        if path.exists() and name not in replaced:
            replaced.append(name)
        path = pins.new_maps / name
    libbpf.check(lib.bpf_map__set_pin_path(pointer, str(path).encode()), f"pin path of {name}")


def _same_shape(handle: int, pointer: int, path: Path) -> bool:
    """True if new programs can use the pinned map: its type, sizes and flags are the same, and its records have the
    same members at the same offsets."""
    lib = libbpf.lib()
    info = map_info(path)
    wanted = tuple(
        getattr(lib, f"bpf_map__{field}")(pointer)
        for field in ("type", "key_size", "value_size", "max_entries", "map_flags")
    )
    if wanted != (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags):
        return False
    # Without BTF of the pinned map only its sizes can be compared.
    pinned = layout.of_map(info)
    return pinned is None or pinned == layout.of_object(handle, pointer)


def attach_cgroup(loaded: Loaded, cgroup: Path, pins: Pins) -> list[str]:
    """Attach the socket programs with pinned links. Correct links are not changed. Returns the names of the others."""
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
                # If pinning failed, closing this descriptor detaches the program, so no incomplete attachment remains.
                os.close(link)
            changed.append(name)
    finally:
        os.close(fd)
    return changed


def detach_cgroup(pins: Pins) -> list[str]:
    """Detach the socket programs, by unpinning their links. Returns the names of those that were attached."""
    found = [name for name in CGROUP_PROGRAMS if (pins.links / name).exists()]
    for name in found:
        (pins.links / name).unlink()
    return found


def _adopt_link(path: Path, program: int, where: tuple[int, int], changed: list[str], name: str) -> bool:
    """Update a pinned link to this program. Returns False, after unpinning it, if it does not belong to this cgroup and
    attach type: it is detached, its cgroup is gone, or it is another object."""
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
    """The result of `check_pins`: names that were pinned again, and a sentence for each problem that a person must
    solve."""

    repinned: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_pins(
    loaded: Loaded, maps: Mapping[str, int], pins: Pins, known: MutableMapping[Path, tuple[int, int]]
) -> PinCheck:
    """Compare the pins with the objects that this process has open (`maps`: descriptors by name). `known`: device and
    inode of each pin that an earlier call found right. Another pin at the same path has another inode. A missing pin is
    created again, because the next agent starts from it. A pin of another object is only reported, because a person
    must have made it. Programs and maps in use do not need pins; the links of the socket programs do
    (attach_cgroup)."""
    wanted = {f"map {name}": (fd, pins.map(name)) for name, fd in maps.items()}
    wanted |= {f"program {name}": (fd, pins.progs / loaded.key / name) for name, fd in loaded.programs.items()}
    # The agent asks every second, and nearly always nothing has changed: one system call for each pin.
    if all(path in known and _inode(path) == known[path] for _, path in wanted.values()):
        return PinCheck()
    if not is_bpffs(pins.root):
        words = f"{pins.root} is not in a BPF file system any more: programs on pods' interfaces go on, Services at the"
        return PinCheck(problems=(f"{words} socket do not; mount it again and restart the agent",))
    repinned: list[str] = []
    problems: list[str] = []
    for name, (fd, path) in wanted.items():
        try:
            place = _inode(path)
            if place is not None and (known.get(path) == place or _is_pinned(fd, path)):
                known[path] = place
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(path).encode()), f"pin {name}")
            repinned.append(name)
        except OSError as error:
            problems.append(f"{name}: its pin {path} is wrong: {error.strerror}")
    return PinCheck(tuple(repinned), tuple(problems))


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode of a pin; None if it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_pinned(fd: int, path: Path) -> bool:
    """True if the object of the descriptor is pinned at `path`, False if nothing is. Raises OSError if another object
    is."""
    try:
        pinned = libbpf.obj_get(str(path))
    except FileNotFoundError:
        return False
    try:
        # struct bpf_map_info and bpf_prog_info have type and id at the same offsets, so this works for both.
        mine, other = libbpf.info(fd, libbpf.MapInfo), libbpf.info(pinned, libbpf.MapInfo)
    finally:
        os.close(pinned)
    if (mine.type, mine.id) != (other.type, other.id):
        raise FileExistsError(errno.EEXIST, "it leads to another object")
    return True


def prune(loaded: Loaded, pins: Pins) -> None:
    """Unpin the programs of other builds. Call it when none of them is attached any more."""
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
    """The kernel's id of a program, as `bpftool prog` shows it."""
    return int(libbpf.info(fd, libbpf.ProgInfo).id)
