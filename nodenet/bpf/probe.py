"""Probes the features of this kernel, for `nodenet status` and for a clear error before loading."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet.bpf import libbpf, tcx
from nodenet.errors import CannotRunError

# enum bpf_prog_type, bpf_map_type and bpf_func_id (include/uapi/linux/bpf.h)
_SCHED_CLS = 3
_CGROUP_SOCK_ADDR = 18
_MAP_TYPES = {"hash": 1, "array": 2, "percpu_hash": 5, "lru_hash": 9, "lpm_trie": 11, "ringbuf": 27}
_PROBE_READ_KERNEL = 113
_REDIRECT_PEER = 155
_SET_RETVAL = 187
# libbpf finds the members of the kernel's structs here. It also searches /boot, but nodenet does not rely on that.
_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
# include/uapi/linux/capability.h
_CAP_SYS_ADMIN = 21
_CAP_PERFMON = 38
_CAP_BPF = 39

# The parts of one feature: a tc program can read the kernel's own packet (struct sk_buff).
OFFLOAD = "struct sk_buff"
CAST_CTX = "kfunc bpf_cast_to_kern_ctx"


@dataclass(frozen=True, slots=True)
class Feature:
    """`needed`: nodenet cannot run without it. Otherwise `without` describes the effect of its absence."""

    name: str
    available: bool
    needed: bool
    purpose: str
    without: str = ""


def _ask(function: Callable[..., int], *arguments: int) -> bool:
    # 1: yes, 0: no, negative: the probe failed. Without permission the result is also 0, so check _permitted first.
    return function(*arguments, None) == 1


def _permitted(status: str, capability: int = _CAP_BPF) -> bool:
    """True if this process has the capability or CAP_SYS_ADMIN. `status` is the text of /proc/self/status."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & (1 << capability | 1 << _CAP_SYS_ADMIN))
    return True


def _has_kfunc(name: bytes) -> bool:
    """True if the kernel's BTF names a function, that is, if its string table has the name."""
    return _KERNEL_BTF.exists() and b"\0" + name + b"\0" in _KERNEL_BTF.read_bytes()


def _reads_kernel_structs(lib: Any, status: str) -> bool:
    """True if a tc program may read the kernel's own packet. The capability is checked separately, because libbpf 1.1
    does not recognise the message with which newer kernels refuse a helper, and reports a yes."""
    return (
        _KERNEL_BTF.exists()
        and _permitted(status, _CAP_PERFMON)
        and _ask(lib.libbpf_probe_bpf_helper, _SCHED_CLS, _PROBE_READ_KERNEL)
    )


def features() -> list[Feature]:
    """Probe the kernel. Raises CannotRunError without CAP_BPF, because then every probe would say no."""
    status = Path("/proc/self/status").read_text()
    if not _permitted(status):
        raise CannotRunError("not permitted to ask the kernel what it offers: that needs CAP_BPF", "run as root")
    lib = libbpf.lib()
    found = [
        Feature(
            "program type sched_cls",
            _ask(lib.libbpf_probe_bpf_prog_type, _SCHED_CLS),
            needed=True,
            purpose="policy and conntrack on pod interfaces (CONFIG_NET_CLS_BPF)",
        ),
        Feature(
            "program type cgroup_sock_addr",
            _ask(lib.libbpf_probe_bpf_prog_type, _CGROUP_SOCK_ADDR),
            needed=True,
            purpose="Service translation at the socket (CONFIG_CGROUP_BPF)",
        ),
    ]
    found += [
        Feature(f"map type {name}", _ask(lib.libbpf_probe_bpf_map_type, number), needed=True, purpose="tables")
        for name, number in _MAP_TYPES.items()
    ]
    found.append(
        Feature(
            "helper redirect_peer",
            _ask(lib.libbpf_probe_bpf_helper, _SCHED_CLS, _REDIRECT_PEER),
            needed=False,
            purpose="same-node packets skip the bridge",
            without="they cross the bridge (kernel 5.10 has it)",
        )
    )
    found.append(
        Feature(
            OFFLOAD,
            _reads_kernel_structs(lib, status),
            needed=False,
            purpose="a pod's packet leaves as it was judged, and its sockets tell who opened a connection "
            "(CONFIG_DEBUG_INFO_BTF, CAP_PERFMON)",
            without="unfinished checksums of pods are not checked: a pod with CAP_NET_RAW can change the addresses and "
            "ports of its packets behind its policy; and of a connection that conntrack lost, the pod that listens on "
            "its port counts as the one that was called",
        )
    )
    found.append(
        Feature(
            CAST_CTX,
            _reads_kernel_structs(lib, status) and _has_kfunc(b"bpf_cast_to_kern_ctx"),
            needed=False,
            purpose="the kernel's own packet is read without a call",
            without="a helper is called for every packet of a pod: 300 instructions (kernel 6.2 has it)",
        )
    )
    found.append(
        Feature(
            "helper set_retval",
            _ask(lib.libbpf_probe_bpf_helper, _CGROUP_SOCK_ADDR, _SET_RETVAL),
            needed=False,
            purpose="connect() to a Service without backends fails with ECONNREFUSED",
            without="it fails with EPERM (kernel 5.18 has it)",
        )
    )
    found.append(
        Feature(
            "tcx",
            tcx.available(),
            needed=False,
            purpose="programs on pod interfaces leave the queueing disciplines to others, such as the bandwidth plugin",
            without="they are attached by clsact, and the bandwidth plugin fails for a limit of what a pod sends "
            "(kernel 6.6 has it)",
        )
    )
    return found


def require(found: list[Feature]) -> None:
    """Raises CannotRunError if needed features are missing. The message names each one and its purpose."""
    missing = [f"{f.name} ({f.purpose})" for f in found if f.needed and not f.available]
    if missing:
        raise CannotRunError(
            f"kernel {os.uname().release} lacks what the datapath needs: " + "; ".join(missing),
            "`nodenet bpf probe` lists every feature; Linux 5.10 or newer with these options is enough",
        )


def available(found: list[Feature], name: str) -> bool:
    return any(f.name == name and f.available for f in found)
