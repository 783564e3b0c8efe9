"""The start of a node: what is missing is named, and `nodenet node init` makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CACHE

pytestmark = pytest.mark.kernel

HERE = Path(__file__).parents[2]


def run(script: str, *, shared: bool = False) -> subprocess.CompletedProcess[str]:
    """A shell script in a mount namespace of its own, where /sys/fs/bpf is an empty folder; `nodenet` is ours."""
    empty = "umount -l /sys/fs/bpf 2>/dev/null; mount -t tmpfs none /sys/fs/bpf"
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", *([] if shared else ["-p", "-f", "--mount-proc"]), "bash", "-c",
         f"nodenet() {{ {sys.executable} -m nodenet \"$@\"; }}; {empty}; {script}"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(f"node_name: n1\nrun_dir: {tmp_path}/run\ncache_dir: {CACHE}\n")
    return path


def test_a_missing_bpffs_is_named_by_the_check_and_by_the_start(config: Path) -> None:
    for command in (f"nodenet agent --check --config {config}", f"nodenet agent --config {config}"):
        done = run(command)
        assert done.returncode == 3
        assert "bpffs: /sys/fs/bpf/nodenet is not in a BPF file system" in done.stderr
        assert "nodenet node init" in done.stderr


def test_init_makes_what_is_missing_and_nothing_twice(config: Path, tmp_path: Path) -> None:
    init = f"nodenet node init --config {config} --bin-dir {tmp_path}/bin -o json"
    done = run(f"{init} && {init} && nodenet agent --check --config {config} && cat /proc/mounts")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("]")[:2]
    assert first.count('"written"') == 2
    assert '"mounted"' in first
    assert second.count('"unchanged"') == 3
    assert "node n1: the agent can start" in done.stdout
    assert " /sys/fs/bpf bpf " in done.stdout
    assert (tmp_path / "bin/nodenet").exists()


def test_init_refuses_a_mount_that_does_not_reach_the_node(config: Path, tmp_path: Path) -> None:
    """With hostPID, PID 1 is the node's, and the mount propagation of the volume is not Bidirectional."""
    done = run(
        f"nodenet node init --config {config} --bin-dir {tmp_path}/bin; echo code $?; cat /proc/mounts", shared=True
    )
    assert "code 3" in done.stdout
    assert "did not reach the node" in done.stderr
    assert "Bidirectional" in done.stderr
    assert " /sys/fs/bpf bpf " not in done.stdout


def test_every_problem_of_the_node_is_named(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + f"cgroup: {tmp_path}\ncache_dir: {tmp_path}/empty\n")
    done = run(f"PATH=/none; nodenet agent --check --config {config}")
    assert done.returncode == 3
    for part in ("is not in a BPF file system", f"{tmp_path} is not a cgroup", "clang is not installed"):
        assert part in done.stderr
