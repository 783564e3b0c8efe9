"""BPF_PROG_TEST_RUN: runs a loaded tc program on a packet, without an interface."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from nodenet.bpf import libbpf

_ROOM = 256
# linux/pkt_cls.h. To accept a packet our programs return UNSPEC, never OK, so that foreign programs and filters still
# see it.
TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = -1, 0, 2, 7
# Offsets in struct __sk_buff (linux/bpf.h).
_INGRESS_IFINDEX_OFFSET, _IFINDEX_OFFSET, _GSO_SIZE_OFFSET = 36, 40, 176


class RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_int32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class PacketRun:
    """`verdict`: the program's return value (TC_ACT_*). `packet`: the packet afterwards. `duration`: ns per run."""

    verdict: int
    packet: bytes
    duration: int


def run_packet(
    program: int, packet: bytes, repeat: int = 1, gso_size: int = 0, ingress_ifindex: int = 0, ifindex: int = 0
) -> PacketRun:
    """Run a tc program on one Ethernet frame. `gso_size`: bytes of each segment into which a device would later cut the
    packet. `ingress_ifindex`: the interface by which the packet entered this node; 0: this node sends it. `ifindex`:
    the device, in this thread's network namespace; 0: the loopback (ifindex 1). Raises OSError; ENODEV: there is no
    such device."""
    source = ctypes.create_string_buffer(packet, len(packet))
    target = ctypes.create_string_buffer(len(packet) + _ROOM)
    options = RunOptions(
        sz=ctypes.sizeof(RunOptions),
        data_in=ctypes.cast(source, ctypes.c_void_p),
        data_out=ctypes.cast(target, ctypes.c_void_p),
        data_size_in=len(packet),
        data_size_out=len(target),
        repeat=repeat,
    )
    if gso_size or ingress_ifindex or ifindex:
        context = ctypes.create_string_buffer(_GSO_SIZE_OFFSET + 4)
        struct.pack_into("=I", context, _INGRESS_IFINDEX_OFFSET, ingress_ifindex)
        struct.pack_into("=I", context, _IFINDEX_OFFSET, ifindex)
        struct.pack_into("=I", context, _GSO_SIZE_OFFSET, gso_size)
        options.ctx_in, options.ctx_size_in = ctypes.addressof(context), len(context)
    libbpf.check(libbpf.lib().bpf_prog_test_run_opts(program, ctypes.byref(options)), "BPF_PROG_TEST_RUN")
    return PacketRun(options.retval, target.raw[: options.data_size_out], options.duration)
