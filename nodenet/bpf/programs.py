"""What the kernel says about loaded programs: names, and how often and how long they ran."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path

from nodenet.bpf import libbpf

# 1: the kernel counts runs and their time, for all programs. That costs every run some nanoseconds.
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


class _Info(ctypes.Structure):
    """struct bpf_prog_info up to the counters (Linux 5.1)."""

    _fields_ = (
        ("start", libbpf.ProgInfo),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    )


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """`name`: the kernel's, at most 15 characters. `runs` and `nanoseconds`: of all its attachments together, and only
    while statistics were on."""

    number: int
    name: str
    tag: str
    runs: int
    nanoseconds: int


def facts(number: int) -> ProgramFacts | None:
    """About the program with this id; None if it does not exist. Raises OSError."""
    fd = libbpf.lib().bpf_prog_get_fd_by_id(number)
    if fd == -errno.ENOENT:
        return None
    libbpf.check(fd, f"program {number}")
    try:
        found = libbpf.info(fd, _Info)
    finally:
        os.close(fd)
    name = bytes(found.start.name).decode(errors="replace")
    return ProgramFacts(number, name, bytes(found.start.tag).hex(), int(found.run_cnt), int(found.run_time_ns))


def statistics_on() -> bool:
    """Whether the kernel counts now."""
    try:
        return STATISTICS.read_text().strip() == "1"
    except OSError:
        return False
