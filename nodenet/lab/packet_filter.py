"""Classic BPF socket filters that drop the packets of some senders, for the blackhole of a lab's API (gate.py).

A filter sees the packets for one socket before TCP does, so TCP does not acknowledge a dropped packet. On a listening
socket it drops SYNs without an answer. It needs no nftables and ends with its socket. Linux
Documentation/networking/filter.rst, "Networking Socket Filters".
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

from nodenet.errors import BadInputError
from nodenet.model import IPNetwork

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
# SKF_NET_OFF: load offsets from here on are relative to the IP header, for every type of socket (linux/filter.h).
_NET_OFF = 0x100000000 - 0x100000
_SOURCE = {4: 12, 6: 8}
# BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_DROP, _WHOLE = 0, 0xFFFFFFFF
# BPF_MAXINSNS
_MOST = 4096


def attach(sock: socket.socket, program: bytes) -> None:
    """Set the socket's filter, in place of any earlier one."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a length and a pointer.
    value = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, value)


def detach(sock: socket.socket) -> None:
    """Remove the socket's filter, if it has one."""
    with suppress(FileNotFoundError):
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def drop_all() -> bytes:
    return _instruction(_RETURN, _DROP)


def drop_from(networks: Iterable[IPNetwork], version: int) -> bytes:
    """A filter that drops packets from these networks, for a socket of this IP version. Raises BadInputError if the
    program is too long for the kernel."""
    program = b"".join(_one(network) for network in networks if network.version == version)
    program += _instruction(_RETURN, _WHOLE)
    if len(program) // 8 > _MOST:
        raise BadInputError("too many nodes for one socket filter", "without --node the fault applies to all nodes")
    return program


def _one(network: IPNetwork) -> bytes:
    """Instructions that drop a packet from this network. They compare the address word by word; at the first
    difference they jump behind the `return`."""
    mask, address = network.netmask.packed, network.network_address.packed
    words = [(int.from_bytes(mask[i : i + 4], "big"), i) for i in range(0, len(mask), 4) if any(mask[i : i + 4])]
    checks = [
        [
            _instruction(_LOAD, _NET_OFF + _SOURCE[network.version] + offset),
            *([_instruction(_AND, bits)] if bits != _WHOLE else []),
            _instruction(_EQUAL, int.from_bytes(address[offset : offset + 4], "big")),
        ]
        for bits, offset in words
    ]
    found: list[bytes] = [_instruction(_RETURN, _DROP)]
    for check in reversed(checks):
        *rest, compare = check
        # jt 0: continue with the next instruction. jf: jump behind the return.
        found = [*rest, compare[:3] + bytes([len(found)]) + compare[4:], *found]
    return b"".join(found)


def _instruction(code: int, k: int) -> bytes:
    """struct sock_filter {u16 code; u8 jt, jf; u32 k}."""
    return struct.pack("=HBBI", code, 0, 0, k)
