"""Attaches programs to interfaces with tcx (Linux 6.6 and newer). tcx uses no queueing discipline, so these remain free
for other programs: the bandwidth plugin adds an ingress qdisc, for which clsact would leave no place.

A program is attached without a bpf_link: it stays when this process ends, is removed with its interface, and needs no
pin. All functions work on interfaces of the calling thread's network namespace. Errors are OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from enum import IntEnum

from nodenet.bpf import libbpf

# linux/bpf.h
_REPLACE, _BEFORE = 1 << 2, 1 << 3
# BPF_MPROG_MAX: the most programs on one side of an interface.
_MOST = 64
_LOOPBACK = 1
# Attempts, because another process may change the list between our query and our change.
_TRIES = 5


class Side(IntEnum):
    """enum bpf_attach_type: the two sides of an interface, as the INTERFACE sees them (link.tc.Hook)."""

    INGRESS = 46
    EGRESS = 47


@dataclass(frozen=True, slots=True)
class Attached:
    """A program on an interface. `name`: the kernel's name, the first 15 characters of the function's name."""

    side: Side
    name: str
    program_id: int


class _AttachOptions(ctypes.Structure):
    """struct bpf_prog_attach_opts of libbpf 1.0. Newer versions have more fields at the end."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("replace_fd", c_int))


class _QueryOptions(ctypes.Structure):
    """struct bpf_prog_query_opts of libbpf 1.1. Newer versions have more fields at the end."""

    _fields_ = (
        ("sz", c_size_t),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_void_p),
        ("prog_cnt", c_uint32),
        ("prog_attach_flags", c_void_p),
    )


def kernel_name(function: str) -> str:
    """A function's name as the kernel stores it, truncated (BPF_OBJ_NAME_LEN)."""
    return function[:15]


def available() -> bool:
    """True if this kernel has tcx. Raises OSError without permission for the query (CAP_NET_ADMIN)."""
    try:
        _query(_LOOPBACK, Side.INGRESS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def program_ids(ifindex: int, side: Side) -> list[int]:
    """The ids of the programs on one side, in the order in which they run. Empty if the interface does not exist."""
    try:
        return _query(ifindex, side)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return []
        raise


def xdp_program(ifindex: int) -> int:
    """The id of the XDP program on an interface; 0 if there is none or the interface does not exist. An XDP program
    sees incoming packets before all our programs."""
    number = c_uint32()
    code = libbpf.lib().bpf_xdp_query_id(ifindex, 0, ctypes.byref(number))
    if code in (-errno.ENODEV, -errno.ENOENT):
        return 0
    libbpf.check(code, f"XDP program of interface {ifindex}")
    return int(number.value)


def attached(ifindex: int) -> list[Attached]:
    """All programs on both sides of an interface, also foreign ones, in the order in which they run."""
    return [
        Attached(side, name, number)
        for side in Side
        for number in program_ids(ifindex, side)
        if (name := _name(number)) is not None
    ]


def attach(ifindex: int, side: Side, program: int) -> bool:
    """Attach a loaded sched_cls program. It replaces the program of the same name atomically, or comes before all
    others. Returns False if it was attached already. Its name must be the same in all builds and used by no other
    program."""
    mine = libbpf.info(program, libbpf.ProgInfo)
    for _ in range(_TRIES):
        there = _query(ifindex, side)
        if mine.id in there:
            return False
        old = next((number for number in there if _name(number) == mine.name.decode()), None)
        try:
            _attach(ifindex, side, program, old)
        except OSError as error:
            # Another process has attached the same program or removed the old one: query again.
            if error.errno not in (errno.EEXIST, errno.ENOENT):
                raise
            continue
        return True
    raise OSError(errno.EAGAIN, f"programs on {side.name.lower()} of interface {ifindex} change all the time")


def detach(ifindex: int, side: Side, name: str) -> bool:
    """Detach all programs of this name. Returns False if there were none."""
    removed = False
    for number in program_ids(ifindex, side):
        if _name(number) != name:
            continue
        fd = _open(number)
        if fd is None:
            continue
        try:
            code = libbpf.lib().bpf_prog_detach2(fd, ifindex, side)
            if code not in (-errno.ENOENT, -errno.ENODEV):
                libbpf.check(code, f"detach {name} from {side.name.lower()} of interface {ifindex}")
                removed = True
        finally:
            os.close(fd)
    return removed


def _attach(ifindex: int, side: Side, program: int, old: int | None) -> None:
    """Raises OSError, with ENOENT if `old` is no longer attached."""
    what = f"attach a program to {side.name.lower()} of interface {ifindex}"
    replaced = _open(old) if old is not None else None
    if old is not None and replaced is None:
        raise OSError(errno.ENOENT, f"{what}: program {old} is gone")
    try:
        flags = _BEFORE if replaced is None else _REPLACE
        options = _AttachOptions(ctypes.sizeof(_AttachOptions), flags, replaced or 0)
        libbpf.check(libbpf.lib().bpf_prog_attach_opts(program, ifindex, side, ctypes.byref(options)), what)
    finally:
        if replaced is not None:
            os.close(replaced)


def _query(ifindex: int, side: Side) -> list[int]:
    ids = (c_uint32 * _MOST)()
    options = _QueryOptions(ctypes.sizeof(_QueryOptions), 0, 0, ctypes.addressof(ids), _MOST, None)
    code = libbpf.lib().bpf_prog_query_opts(ifindex, side, ctypes.byref(options))
    libbpf.check(code, f"programs on {side.name.lower()} of interface {ifindex}")
    return list(ids[: options.prog_cnt])


def _name(number: int) -> str | None:
    """The kernel's name of a program; None if it does not exist."""
    fd = _open(number)
    if fd is None:
        return None
    try:
        return bytes(libbpf.info(fd, libbpf.ProgInfo).name).decode(errors="replace")
    finally:
        os.close(fd)


def _open(number: int) -> int | None:
    code = libbpf.lib().bpf_prog_get_fd_by_id(number)
    return None if code == -errno.ENOENT else libbpf.check(code, f"program {number}")
