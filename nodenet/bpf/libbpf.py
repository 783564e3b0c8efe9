"""A thin binding of libbpf.so.1 with only the calls that the datapath uses. Errors are OSError with libbpf's message.

It loads its own handle of the library, because BCC loads the same library and sets other argument types.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from nodenet.errors import CannotRunError

_LogCallback = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
RingCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_LEVEL_DEBUG = 2
_LOG_LINES = 60

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__btf": (c_void_p, [c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_uint32, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__btf_key_type_id": (c_uint32, [c_void_p]),
    "bpf_map__btf_value_type_id": (c_uint32, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_pin_path": (c_int, [c_void_p, c_char_p]),
    "bpf_map__set_initial_value": (c_int, [c_void_p, c_void_p, c_size_t]),
    "bpf_map__is_internal": (ctypes.c_bool, [c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__expected_attach_type": (c_int, [c_void_p]),
    "bpf_obj_get": (c_int, [c_char_p]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_map_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_attach_opts": (c_int, [c_int, c_int, c_int, c_void_p]),
    "bpf_prog_detach2": (c_int, [c_int, c_int, c_int]),
    "bpf_prog_query_opts": (c_int, [c_int, c_int, c_void_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_xdp_query_id": (c_int, [c_int, c_int, POINTER(c_uint32)]),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, c_void_p]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_create": (c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
    ),
    "bpf_map_update_batch": (c_int, [c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p]),
    "bpf_prog_test_run_opts": (c_int, [c_int, c_void_p]),
    "ring_buffer__new": (c_void_p, [c_int, RingCallback, c_void_p, c_void_p]),
    "ring_buffer__consume": (c_int, [c_void_p]),
    "ring_buffer__epoll_fd": (c_int, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
    "libbpf_probe_bpf_prog_type": (c_int, [c_int, c_void_p]),
    "libbpf_probe_bpf_map_type": (c_int, [c_int, c_void_p]),
    "libbpf_probe_bpf_helper": (c_int, [c_int, c_int, c_void_p]),
    "libbpf_num_possible_cpus": (c_int, []),
    "btf__load_from_kernel_by_id": (c_void_p, [c_uint32]),
    "btf__free": (None, [c_void_p]),
    "btf__find_by_name_kind": (c_int, [c_void_p, c_char_p, c_uint32]),
    "btf__type_by_id": (c_void_p, [c_void_p, c_uint32]),
    "btf__resolve_type": (c_int, [c_void_p, c_uint32]),
    "btf__resolve_size": (ctypes.c_int64, [c_void_p, c_uint32]),
    "btf__name_by_offset": (c_char_p, [c_void_p, c_uint32]),
}


class _Log:
    """Keeps libbpf's last messages for error messages. One per process, because libbpf has one print function."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        libc = ctypes.CDLL(None)
        self._vsnprintf = libc.vsnprintf
        self._vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
        self.callback = _LogCallback(self._receive)

    def _receive(self, level: int, template: bytes, arguments: int) -> int:
        if level < _LEVEL_DEBUG:
            buffer = ctypes.create_string_buffer(4096)
            self._vsnprintf(buffer, len(buffer), template, arguments)
            self.lines += buffer.value.decode(errors="replace").rstrip().splitlines()
            del self.lines[: -_LOG_LINES * 4]
        return 0

    def take(self) -> str:
        text = "\n".join(self.lines[-_LOG_LINES:])
        self.lines.clear()
        return text


@cache
def log() -> _Log:
    return _Log()


@cache
def lib() -> Any:
    """The library with its signatures set. Raises CannotRunError if libbpf 1.x is not installed."""
    try:
        handle = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise CannotRunError(f"libbpf.so.1 cannot be loaded: {error}", "install libbpf1 (Debian, Ubuntu)") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(handle, name)
        function.restype = result
        function.argtypes = arguments
    handle.libbpf_set_print.argtypes = [_LogCallback]
    handle.libbpf_set_print.restype = c_void_p
    handle.libbpf_set_print(log().callback)
    return handle


def check(result: int | None, what: str) -> int:
    """Check a libbpf result. Negative or NULL raises OSError with `what` and libbpf's last message."""
    if result is not None and result >= 0:
        return result
    number = -result if result is not None else ctypes.get_errno()
    words = log().take()
    raise OSError(number, f"{what}: {os.strerror(number)}" + (f"\n{words}" if words else ""))


def obj_get(path: str) -> int:
    """Open a pinned program, map or link. Returns a descriptor."""
    return check(lib().bpf_obj_get(path.encode()), path)


class _OpenOptions(ctypes.Structure):
    """The first fields of struct bpf_object_open_opts (libbpf 1.0)."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("attach_prog_fd", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
    )


def open_options(*, btf_path: Path) -> Any:
    """Options for bpf_object__open_file. `btf_path`: a file with BTF of the kernel's structs (an ELF object, or raw
    BTF), which replaces /sys/kernel/btf/vmlinux."""
    return byref(_OpenOptions(sz=ctypes.sizeof(_OpenOptions), btf_custom_path=str(btf_path).encode()))


class MapCreateOptions(ctypes.Structure):
    """The first fields of struct bpf_map_create_opts (libbpf 1.0)."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The first fields of struct bpf_map_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        # 0: the map was created without BTF.
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
    )


class ProgInfo(ctypes.Structure):
    """The first fields of struct bpf_prog_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
    )


class CgroupLinkInfo(ctypes.Structure):
    """struct bpf_link_info of a cgroup link."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
        ("pad2", c_uint32),
    )


def info(fd: int, kind: type[Any]) -> Any:
    """BPF_OBJ_GET_INFO_BY_FD. `kind` is one of the structures above."""
    value = kind()
    size = c_uint32(ctypes.sizeof(value))
    check(lib().bpf_obj_get_info_by_fd(fd, byref(value), byref(size)), f"information about {kind.__name__}")
    return value


def map_ids(program: int) -> list[int]:
    """The ids of the maps that a program uses."""
    count = info(program, ProgInfo).nr_map_ids
    ids = (c_uint32 * count)()
    value = ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids))
    size = c_uint32(ctypes.sizeof(value))
    check(lib().bpf_obj_get_info_by_fd(program, byref(value), byref(size)), "maps of a program")
    return list(ids)


def map_name(number: int) -> bytes:
    """The kernel's name of the map with this id. Raises OSError (ENOENT) if it does not exist."""
    fd = check(lib().bpf_map_get_fd_by_id(number), f"map {number}")
    try:
        return bytes(info(fd, MapInfo).name)
    finally:
        os.close(fd)
