"""The mount table, with every mount point that a process may choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodenet.mounttable import Mount, mounts

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("written", "target"),
    [
        (b"/mnt/caf\xe9", b"/mnt/caf\xe9"),
        (b"/mnt/\\303\\251", "/mnt/é".encode()),
        (b"/a\\040b\\011c\\012d\\134e", b"/a b\tc\nd\\e"),
        (b"/\xff\xfe\x85\x0b\x1c", b"/\xff\xfe\x85\x0b\x1c"),
    ],
)
def test_a_mount_point_may_be_any_bytes(tmp_path: Path, written: bytes, target: bytes) -> None:
    table = tmp_path / "mounts"
    table.write_bytes(b"none " + written + b" tmpfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n")
    assert list(mounts(table)) == [
        Mount(Path(os.fsdecode(target)), "tmpfs"),
        Mount(Path("/sys/fs/bpf"), "bpf"),
    ]


@pytest.mark.kernel
def test_a_strange_mount_hides_no_other(tmp_path: Path) -> None:
    """With a real one, in a mount namespace of its own: the agent finds its cgroup file system all the same."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    odd = os.fsencode(tmp_path) + b"/caf\xe9 \n\xff"
    Path(os.fsdecode(odd)).mkdir()
    code = """
import os, sys
from pathlib import Path
from nodenet.link import mounts
from nodenet.link.cgroups import mount_point
from nodenet.mounttable import filesystem_of
mounts.own()
target = Path(sys.argv[1])
mounts.mount("none", target, "tmpfs", 0)
assert mounts.mount_points(target) == [target]
assert filesystem_of(target / "below") == "tmpfs"
assert filesystem_of(Path("/proc/self")) == "proc"
print(mount_point())
"""
    command = [sys.executable, "-c", code, os.fsdecode(odd)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=HERE)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_dir()
