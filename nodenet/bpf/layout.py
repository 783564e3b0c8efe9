"""Reads the layout of a map's keys and values from BTF, of an object file or of a map in the kernel.

Two builds may share a map if they have the same layout of it. Equal sizes are not enough, because one field may have
replaced another.
"""

from __future__ import annotations

import ctypes
import struct

from nodenet.bpf import libbpf
from nodenet.tables import Layout

_STRUCT = 4


class _Type(ctypes.Structure):
    """struct btf_type."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


def of_map(info: libbpf.MapInfo) -> Layout | None:
    """The layout of a map in the kernel; None if the kernel has no BTF for it."""
    if not info.btf_id:
        return None
    lib = libbpf.lib()
    btf = lib.btf__load_from_kernel_by_id(info.btf_id)
    if not btf:
        return None
    try:
        return _layout(btf, info.btf_key_type_id, info.btf_value_type_id)
    finally:
        lib.btf__free(btf)


def of_object(handle: int, pointer: int) -> Layout | None:
    """The layout of a map (`pointer`) of an opened object (`handle`); None for a map without types."""
    lib = libbpf.lib()
    key, value = lib.bpf_map__btf_key_type_id(pointer), lib.bpf_map__btf_value_type_id(pointer)
    return _layout(lib.bpf_object__btf(handle), key, value) if value else None


def _layout(btf: int, key: int, value: int) -> Layout:
    return Layout(_fields(btf, key), _fields(btf, value))


def _fields(btf: int, number: int) -> str:
    """`name:bytes` for each member of a struct; `number:bytes` for any other type."""
    lib = libbpf.lib()
    at = lib.btf__type_by_id(btf, libbpf.check(lib.btf__resolve_type(btf, number), "type of a map"))
    found = _Type.from_address(at)
    if (found.info >> 24) & 0x1F != _STRUCT:
        return f"number:{lib.btf__resolve_size(btf, number)}"
    members = (
        struct.unpack("=III", ctypes.string_at(at + ctypes.sizeof(_Type) + 12 * index, 12))
        for index in range(found.info & 0xFFFF)
    )
    return " ".join(f"{_name(btf, name)}:{lib.btf__resolve_size(btf, type_id)}" for name, type_id, _ in members)


def _name(btf: int, offset: int) -> str:
    text: bytes = libbpf.lib().btf__name_by_offset(btf, offset)
    return text.decode() or "union"
