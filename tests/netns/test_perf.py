"""The benchmark on real kernel objects: every mode really balances, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
HELPER = Path(__file__).with_name("perf_helper.py")
BENCH = [sys.executable, "-m", "nodenet", "bench"]
TOOLS = {"ebpf": "clang", "iptables": "iptables-nft-restore", "nftables": "nft"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TINY = ["--services", "1,3", "--epochs", "2", "--rounds", "2", "--count", "20", "--updates", "1", "--cpu", "-1"]


def leftovers(pid: int) -> list[str]:
    """What a bench of that process would have had to remove."""
    found = [str(path) for path in Path("/run/netns").glob(f"bench{pid}-*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/nodenet-bench-{pid}*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if "nodenet-bench-" in line]
    return found


@pytest.mark.parametrize("mode", TOOLS)
def test_mode_balances_updates_and_clears(mode: str) -> None:
    if not shutil.which(TOOLS[mode]):
        pytest.skip(f"{TOOLS[mode]} is not installed")
    done = subprocess.run(
        [sys.executable, HELPER, mode], capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for place in ("first", "middle", "last"):
        assert found[f"{place}/tcp"] == 20
        assert found[f"{place}/udp"] == 20
    assert 0 < found["update"] < 5
    assert 0 < found["back"] < 5
    assert found["cleared"]
    assert found["again"] == 5


def test_a_whole_run(tmp_path: Path) -> None:
    for tool in TOOLS.values():
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    report = tmp_path / "report.json"
    workloads = "crr,rr,udp,stream,program,update,policy,flows,memory"
    process = subprocess.Popen(
        [*BENCH, *TINY, "--workloads", workloads, "--modes", "direct,ebpf,nftables,ipvs", "--json", str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    out, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert "Short connections" in out
    found = json.loads(report.read_text())
    assert {row["workload"] for row in found["results"]} == set(workloads.split(","))
    assert {"direct", "ebpf", "nftables"} <= {row["mode"] for row in found["results"]}
    reasons = [entry["reason"] for entry in found["meta"]["skipped"]]
    assert "ipvs" in {row["mode"] for row in found["results"]} or any("ip_vs" in reason for reason in reasons)
    assert leftovers(process.pid) == []


def loading(pid: int) -> list[str]:
    """The nft processes that load into the nodes of that bench."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "comm").read_text() == "nft\n" and f"bench{pid}-".encode() in (path / "environ").read_bytes():
                found.append(path.name)
    return found


def test_interrupted_while_a_tool_loads() -> None:
    """nft is in the kernel then, and a kernel that does not preempt lets nobody else run on its CPU."""
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    command = [*BENCH, "-q", "--modes", "direct,nftables", "--services", "6000", "--workloads", "program"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not loading(process.pid):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(0.7)
    assert loading(process.pid), "the load is over already: it shows nothing"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "everything that it created is removed" in errors
    assert loading(process.pid) == []
    assert leftovers(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*BENCH, "--rounds", "100000", "--modes", "direct,ebpf", "--services", "1", "--workloads", "crr"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    words = ""
    while "crr, 1 Services" not in words:
        words = process.stderr.readline()
        assert words, "the run ended before it was interrupted"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    if number is signal.SIGKILL:
        # Only the machine's own cgroup tree keeps a trace, until the next run.
        left = [found for found in leftovers(process.pid) if "cgroup" not in found]
        assert left == []
        subprocess.run(
            [*BENCH, *TINY, "--modes", "direct,ebpf", "--workloads", "program"],
            check=True,
            env=ENVIRONMENT,
            capture_output=True,
        )
    else:
        assert process.returncode == 130
        assert "everything that it created is removed" in errors
    assert leftovers(process.pid) == []


def test_a_mode_that_cannot_run_alone_is_an_error() -> None:
    if Path("/proc/net/ip_vs").exists():
        pytest.skip("this kernel has ip_vs")
    done = subprocess.run(
        [*BENCH, "--modes", "direct,ipvs"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 3
    assert "ip_vs" in done.stderr or "not installed" in done.stderr


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    for name in ("ip", "nsenter", "cc", "sh", "modprobe", "cat", "clang", "ld", "as"):
        found = shutil.which(name)
        if found:
            (tmp_path / name).symlink_to(found)
    environment = {**ENVIRONMENT, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*BENCH, "--modes", "direct,nftables"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 3
    assert "not installed: nft" in done.stderr
    assert "apt-get install nftables" in done.stderr


def test_not_root() -> None:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*drop, *BENCH, "--modes", "direct,nftables"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    if "Permission denied" in done.stderr:
        pytest.skip("another user may not read the checkout")
    assert done.returncode == 3
    assert "needs root" in done.stderr
