"""A namespace that plays a node: a root folder of Debian with containerd and runc, without Python, in network and mount
namespaces of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodenet.link import netns
from tests.image.cri import Cri

# In the mount namespace of the node: file systems as systemd mounts them, then the folder becomes the root. What
# containerd writes is not on an overlay, because it makes overlays itself.
_BOOT = r"""
set -e
root=$1/root
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$root"
cd "$root"
mkdir -p var/lib/containerd run/netns old
mount --bind "$1/containerd" var/lib/containerd
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
[ "$3" = without-bpffs ] || mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/netns
mount --make-rprivate .
pivot_root . old
umount -l old
mount --make-rshared /
exec containerd --config /etc/containerd/config.toml
"""
_CONFIG = """
version = 2
disabled_plugins = [{disabled}]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
_DISABLED = ("aufs", "btrfs", "devmapper", "zfs")


@dataclass(frozen=True, slots=True)
class Node:
    """A running node."""

    name: str
    pid: int
    cri: Cri
    log: Path

    def path(self, inside: str) -> Path:
        """A path of the node, its mounts included."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the node on it."""
        command = ["nsenter", "-t", str(self.pid), "-m", "-n", "-r", *words]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=300, env=environment)

    def load(self, archive: Path) -> None:
        """`ctr images import` of an archive."""
        self.path("/tmp/archive.tar").write_bytes(archive.read_bytes())
        self.run("ctr", "-n", "k8s.io", "images", "import", "/tmp/archive.tar")
        self.path("/tmp/archive.tar").unlink()


@contextmanager
def node(lower: Path, pause: str, *, bpffs: bool = True) -> Iterator[Node]:
    """Start a node from an extracted root folder, which stays as it is, and remove the node with everything in it."""
    name = f"nnimage-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="nnimage", ignore_cleanup_errors=True) as folder:
        upper, log = Path(folder) / "upper", Path(folder) / "containerd.log"
        for part in ("root", "upper", "work", "containerd"):
            (Path(folder) / part).mkdir()
        _write(upper / "etc/containerd/config.toml", _CONFIG.format(pause=pause, disabled=_quoted(_DISABLED)))
        loopback = upper / "opt/cni/bin/loopback"
        loopback.parent.mkdir(parents=True)
        loopback.write_bytes((lower / "usr/lib/cni/loopback").read_bytes())
        loopback.chmod(0o755)
        netns.create(name)
        try:
            with log.open("wb") as out:
                words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, "boot", folder, lower]
                process = netns.popen(name, [*words, "" if bpffs else "without-bpffs"], stdout=out, stderr=out)
            try:
                yield _started(name, process, log)
            finally:
                process.terminate()
                process.wait(30)
                _end_processes(name)
        finally:
            netns.delete(name)


def _started(name: str, process: subprocess.Popen[Any], log: Path) -> Node:
    socket = Path(f"/proc/{process.pid}/root/run/containerd/containerd.sock")
    until(lambda: socket.exists() or process.poll() is not None, "containerd listens", log)
    # A socket's path has 107 characters at most, and grpc resolves no link of /proc on its own.
    short = Path(f"/run/{name}.sock")
    short.symlink_to(socket)
    cri = Cri(short)
    try:
        until(lambda: cri.ready().get("RuntimeReady") is True, "the runtime is ready", log)
    finally:
        short.unlink()
    return Node(name, process.pid, cri, log)


def _end_processes(name: str) -> None:
    """End what containerd leaves: its shims, and the containers of a failed test. Containers are in cgroups below
    `name`, shims in the node's network namespace."""
    deadline = time.monotonic() + 10
    while left := {pid for pid in _pids() if _is_in(pid, name)} | _in_cgroups(name):
        assert time.monotonic() < deadline, left
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    for top in _cgroups(name):
        for path in sorted((entry for entry in (top, *top.rglob("*")) if entry.is_dir()), reverse=True):
            path.rmdir()


def _cgroups(name: str) -> list[Path]:
    return [path for pattern in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{pattern}{name}")]


def _in_cgroups(name: str) -> set[int]:
    files = [file for top in _cgroups(name) for file in top.rglob("cgroup.procs")]
    return {int(line) for file in files for line in file.read_text().split()}


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _is_in(pid: int, name: str) -> bool:
    try:
        return netns.inode(f"/proc/{pid}/ns/net") == netns.inode(name)
    except OSError:
        return False


def until(true: Callable[[], bool], what: str, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in names)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
