"""The datapath in other kernels, in virtual machines: the floor, and the newest that Debian packages.

Skipped where no virtual machine can run or no kernel can be had. `make test-kernels` tries all five. NODENET_KERNELS
chooses others here (names with spaces between; empty: none).
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nodenet.bpf import build
from nodenet.errors import CannotRunError
from perf import kernels
from perf.vm import Kernel, cannot_run, get_kernel, run_in_vm
from perf.vm.machine import VmError

pytestmark = pytest.mark.kernel

DEFAULT = "5.10 newest"


def wanted() -> list[str]:
    return os.environ.get("NODENET_KERNELS", DEFAULT).split()


def need(name: str) -> Kernel:
    """Skips with the reason where there is no machine or no kernel."""
    if reason := cannot_run():
        pytest.skip(reason)
    try:
        return get_kernel(name)
    except CannotRunError as error:
        pytest.skip(f"kernel {name}: {error}")


@pytest.fixture
def any_kernel() -> Kernel:
    if not wanted():
        pytest.skip("NODENET_KERNELS is empty")
    return need(wanted()[-1])


def helpers() -> set[str]:
    """Processes that a machine of this process consists of."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in lines.splitlines())
    return {pid for pid, parent, name in found if parent == str(os.getpid()) and name.startswith(("qemu", "virtiofsd"))}


@pytest.mark.skipif(not wanted(), reason="NODENET_KERNELS is empty")
def test_datapath_in_other_kernels(bpf_cache: Path) -> None:
    tried = [need(name).name for name in wanted()]
    build.build_every_variant(bpf_cache)
    rows = kernels.run_matrix(tried)
    assert all(row.ok for row in rows), "\n" + kernels.table(rows)


def test_command_its_status_and_its_files(any_kernel: Kernel) -> None:
    """Files are this machine's, and what is written stays inside."""
    command = "head -n 1 pyproject.toml; uname -r; echo told >&2; touch /usr/nodenet-was-here; exit 7"
    result = run_in_vm(any_kernel, command, cwd=Path(__file__).parents[2], timeout=60)
    assert result.status == 7
    assert result.output.splitlines() == ["[build-system]", any_kernel.release]
    assert "told" in result.console
    assert not Path("/usr/nodenet-was-here").exists()
    assert not helpers()


@pytest.mark.parametrize("how", ["timeout", "stop", "panic"])
def test_an_early_end_leaves_nothing(any_kernel: Kernel, how: str) -> None:
    stop = threading.Event()
    command = "echo c > /proc/sysrq-trigger" if how == "panic" else "sleep 1000"
    if how == "stop":
        threading.Timer(2, stop.set).start()
    started = time.monotonic()
    with pytest.raises(VmError, match={"timeout": "no end in 2 s", "stop": "stopped", "panic": "Kernel panic"}[how]):
        run_in_vm(any_kernel, command, timeout=2 if how == "timeout" else 60, stop=stop)
    assert time.monotonic() - started < 60
    assert not helpers()
