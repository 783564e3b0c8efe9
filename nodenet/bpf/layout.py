"""How the keys and values of a map are laid out: read from BTF, of an object or of a map in the kernel.

Two builds with the same layout of a map may share it. The sizes do not say that: a field may have taken the place of
another one.
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
    """Of a map in the kernel; None where the kernel has no description of it."""
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
    """Of a map (`pointer`) of an opened object (`handle`); None for one without types."""
    lib = libbpf.lib()
    key, value = lib.bpf_map__btf_key_type_id(pointer), lib.bpf_map__btf_value_type_id(pointer)
    return _layout(lib.bpf_object__btf(handle), key, value) if value else None


def _layout(btf: int, key: int, value: int) -> Layout:
    return Layout(_fields(btf, key), _fields(btf, value))


def _fields(btf: int, number: int) -> str:
    """`name:bytes` of each member of a struct; `number:bytes` of anything else."""
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
