"""Describes the machine of a run, without which its figures have no meaning."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Kernel, CPU, mitigations, governor, load, versions. Values that cannot be read are None."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "nodenet": version("nodenet"),
        "kernel": platform.release(),
        "kernel_version": platform.version(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "mitigations": _mitigations(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "hypervisor": _flag("hypervisor"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": list(os.getloadavg()),
        "bpf_jit": _read(Path("/proc/sys/net/core/bpf_jit_enable")),
        "python": platform.python_version(),
    }


def noise(spins: Sequence[float]) -> dict[str, float]:
    """The variation of equal computations without any network, in us. Empty without samples."""
    if not spins:
        return {}
    ordered = sorted(spins)
    median = ordered[len(ordered) // 2]
    return {
        "median_us": round(median, 1),
        "lowest": round(ordered[0] / median, 3),
        "p90": round(ordered[int(len(ordered) * 0.9)] / median, 3),
        "highest": round(ordered[-1] / median, 3),
    }


def steal() -> float:
    """Steal time since boot in seconds, summed over all CPUs."""
    words = (_read(Path("/proc/stat")) or "cpu").splitlines()[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK") if len(words) > 8 else 0.0


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpu_model() -> str | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith(("model name", "Model", "Processor")):
            return line.partition(":")[2].strip()
    return None


def _flag(name: str) -> bool | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("flags"):
            return name in line.split()
    return None


def _mitigations() -> dict[str, str]:
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    if not folder.is_dir():
        return {}
    return {path.name: _read(path) or "" for path in sorted(folder.iterdir())}
