"""Programs on an interface by tcx (Linux 6.6 and newer): lists of programs beside the queueing disciplines, so that
those stay free for others (the bandwidth plugin makes an ingress qdisc, and clsact would be in its place).

A program is attached without a bpf_link: it stays when this process ends, goes with its interface, and needs no pin.
All functions mean the interfaces of the calling thread's network namespace. Errors are OSError.
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
# BPF_MPROG_MAX: programs on one side of an interface.
_MOST = 64
_LOOPBACK = 1
# Another process may change the list between our look at it and our change.
_TRIES = 5


class Side(IntEnum):
    """enum bpf_attach_type: the two sides of an interface, as the INTERFACE sees them (link.tc.Hook)."""

    INGRESS = 46
    EGRESS = 47


@dataclass(frozen=True, slots=True)
class Attached:
    """A program on an interface. `name` is the kernel's: at most 15 characters of the function's name."""

    side: Side
    name: str
    program_id: int


class _AttachOptions(ctypes.Structure):
    """struct bpf_prog_attach_opts of libbpf 1.0; newer ones have more fields behind these."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("replace_fd", c_int))


class _QueryOptions(ctypes.Structure):
    """struct bpf_prog_query_opts of libbpf 1.1; newer ones have more fields behind these."""

    _fields_ = (
        ("sz", c_size_t),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_void_p),
        ("prog_cnt", c_uint32),
        ("prog_attach_flags", c_void_p),
    )


def kernel_name(function: str) -> str:
    """What the kernel keeps of a function's name (BPF_OBJ_NAME_LEN)."""
    return function[:15]


def available() -> bool:
    """Whether this kernel has tcx. Raises OSError where the question is not permitted (CAP_NET_ADMIN)."""
    try:
        _query(_LOOPBACK, Side.INGRESS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def program_ids(ifindex: int, side: Side) -> list[int]:
    """The kernel's numbers of the programs on one side, in the order in which they run. Empty when the interface is
    gone."""
    try:
        return _query(ifindex, side)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return []
        raise


def xdp_program(ifindex: int) -> int:
    """The number of the XDP program on an interface, 0 for none or when the interface is gone. It sees what arrives
    before any program of ours does."""
    number = c_uint32()
    code = libbpf.lib().bpf_xdp_query_id(ifindex, 0, ctypes.byref(number))
    if code in (-errno.ENODEV, -errno.ENOENT):
        return 0
    libbpf.check(code, f"XDP program of interface {ifindex}")
    return int(number.value)


def attached(ifindex: int) -> list[Attached]:
    """Every program on both sides of an interface, ours and others', in the order in which they run."""
    return [
        Attached(side, name, number)
        for side in Side
        for number in program_ids(ifindex, side)
        if (name := _name(number)) is not None
    ]


def attach(ifindex: int, side: Side, program: int) -> bool:
    """Attach a loaded sched_cls program: in place of the one with its name, in one step, or before all others. False
    when it was there. What the kernel calls the program must be its own name: another build's has the same."""
    mine = libbpf.info(program, libbpf.ProgInfo)
    for _ in range(_TRIES):
        there = _query(ifindex, side)
        if mine.id in there:
            return False
        old = next((number for number in there if _name(number) == mine.name.decode()), None)
        try:
            _attach(ifindex, side, program, old)
        except OSError as error:
            # Somebody else attached the same program, or took the old one away: look again.
            if error.errno not in (errno.EEXIST, errno.ENOENT):
                raise
            continue
        return True
    raise OSError(errno.EAGAIN, f"programs on {side.name.lower()} of interface {ifindex} change all the time")


def detach(ifindex: int, side: Side, name: str) -> bool:
    """Remove every program of this name; False when there was none."""
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
    """Raises OSError, ENOENT when `old` is gone."""
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
    """The kernel's name of a program; None when it is gone."""
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
