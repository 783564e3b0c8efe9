"""Reads the chains of legacy iptables, through the socket options that its program uses: the node needs no program.

iptables-nft writes its chains to nf_tables instead (nftables.py). The structs are from linux/netfilter_ipv4/ip_tables.h
and ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nodenet.link import smallfile

_GET_INFO, _GET_ENTRIES = 64, 65
_NAME = 32
_INFO = struct.Struct("=32sI5I5III")
# struct ipt_get_entries: name, size, and entries from a multiple of 8 on.
_ENTRIES = 40
_FORWARD = 2  # NF_INET_FORWARD
_DROP = -1  # a standard target's verdict: -NF_DROP - 1
_ERROR_TARGET = b"ERROR"
# Offsets of target_offset and next_offset in an entry, after struct ipt_ip or ip6t_ip6 and nfcache.
_OFFSETS = {4: 88, 6: 140}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}


class LegacyTable(NamedTuple):
    """A table: its user-defined chains, and whether the chain FORWARD drops what no rule accepts."""

    version: int
    name: str
    chains: tuple[str, ...]
    forward_drops: bool


def legacy_tables(version: int) -> list[LegacyTable]:
    """The tables of an IP version that are in use in this namespace. Only those are asked for: a question about another
    one would load it. Raises OSError."""
    try:
        names = smallfile.read(_NAMES[version]).split()
    except FileNotFoundError:
        return []
    return [_table(version, name) for name in names]


def _table(version: int, name: str) -> LegacyTable:
    with socket.socket(_FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        while True:
            info = _INFO.unpack(_ask(sock, version, _GET_INFO, name.encode().ljust(_INFO.size, b"\0")))
            hooks, underflows, size = info[1], info[7:12], info[13]
            asked = (name.encode().ljust(_NAME, b"\0") + struct.pack("=I", size)).ljust(_ENTRIES + size, b"\0")
            try:
                blob = _ask(sock, version, _GET_ENTRIES, asked)[_ENTRIES:]
                break
            except BlockingIOError:
                continue  # EAGAIN: the table has changed its size meanwhile
    drops = bool(hooks & 1 << _FORWARD) and _verdict(version, blob, underflows[_FORWARD]) == _DROP
    return LegacyTable(version, name, tuple(_chains(version, blob)), drops)


def _chains(version: int, blob: bytes) -> Iterator[str]:
    """A user-defined chain begins with an entry whose target is ERROR with the chain's name. The last one ends the
    table."""
    offset = 0
    while offset + _OFFSETS[version] + 4 <= len(blob):
        target, following = struct.unpack_from("=HH", blob, offset + _OFFSETS[version])
        if following == 0:
            return
        # struct xt_entry_target: size, name[29], revision; then the data.
        start = offset + target
        if blob[start + 2 : start + 31].partition(b"\0")[0] == _ERROR_TARGET and offset + following < len(blob):
            yield os.fsdecode(blob[start + 32 : start + 62].partition(b"\0")[0])
        offset += following


def _verdict(version: int, blob: bytes, offset: int) -> int:
    (target,) = struct.unpack_from("=H", blob, offset + _OFFSETS[version])
    return int(struct.unpack_from("=i", blob, offset + target + 32)[0])


def _ask(sock: socket.socket, version: int, option: int, asked: bytes) -> bytes:
    """getsockopt with input: Python's own does not pass any."""
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint32(len(asked))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), _LEVEL[version], option, buffer, ctypes.byref(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"legacy iptables: {os.strerror(code)}")
    return buffer.raw[: length.value]
