"""Which cgroup is the node's root, from what a container, a kind node and a host see."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nodenet.errors import CannotRunError
from nodenet.link import hierarchy
from nodenet.link.hierarchy import node_root
from tests.conftest import cgroup2_root

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.fixture(autouse=True)
def no_service_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hierarchy, "SERVICE_ACCOUNT", tmp_path / "none")


def line(root: str, target: str, fstype: str = "cgroup2") -> str:
    return f"41 31 0:38 {root} {target} rw,relatime shared:9 - {fstype} cgroup2 rw\n"


def proc(folder: Path, own: str, mounts: str, init: str | None = None) -> Path:
    """A /proc with this process and PID 1."""
    for name, cgroup, table in (("self", own, mounts), ("1", own, mounts if init is None else init)):
        (folder / "proc" / name).mkdir(parents=True)
        (folder / "proc" / name / "cgroup").write_text(f"5:cpu:/x\n0::{cgroup}\n")
        (folder / "proc" / name / "mountinfo").write_text(line("/", "/tmp", "tmpfs") + table)
    return folder / "proc"


def test_on_a_host_it_is_the_mount(tmp_path: Path) -> None:
    for number, own in enumerate(("/system.slice/nodenet.service", "/")):
        found = proc(tmp_path / str(number), own, line("/", "/sys/fs/cgroup"))
        assert node_root({}, found) == Path("/sys/fs/cgroup")


def test_a_pod_with_the_nodes_folder_mounted(tmp_path: Path) -> None:
    """The container's own mount comes first in the table and shows less."""
    own = line("/", "/sys/fs/cgroup")
    for number, above in enumerate(("/../..", "/../../..", "/..")):
        found = proc(tmp_path / str(number), "/", own + line(above, "/host/cgroup"))
        assert node_root(POD, found) == Path("/host/cgroup")
    # Without a cgroup namespace of its own.
    found = proc(tmp_path / "host", "/kubepods/pod1/c1", line("/kubepods/pod1/c1", "/sys/fs/cgroup") + line("/", "/h"))
    assert node_root(POD, found) == Path("/h")


def test_the_highest_of_several(tmp_path: Path) -> None:
    found = proc(tmp_path, "/", line("/..", "/pod") + line("/../../..", "/node") + line("/../..", "/kubepods"))
    assert node_root(POD, found) == Path("/node")


def test_a_pod_with_the_process_tree_of_the_node(tmp_path: Path) -> None:
    """hostPID: PID 1 is the node's. On kind its mount is the node container's root."""
    found = proc(tmp_path, "/", line("/", "/sys/fs/cgroup"), line("/../../..", "/sys/fs/cgroup/unified"))
    assert node_root(POD, found) == found / "1/root/sys/fs/cgroup/unified"


@pytest.mark.parametrize("mounts", [line("/", "/sys/fs/cgroup"), line("/../other", "/sys/fs/cgroup")])
def test_a_pod_that_sees_only_itself_is_refused(tmp_path: Path, mounts: str) -> None:
    with pytest.raises(CannotRunError, match=r"only this container's own cgroup is visible") as caught:
        node_root(POD, proc(tmp_path, "/", mounts))
    assert "hostPID" in caught.value.hint
    with pytest.raises(CannotRunError, match=r"only this container's own cgroup is visible \(/sys/fs/cgroup\)"):
        node_root(POD, proc(tmp_path / "names", "/a/b", line("/a/b", "/sys/fs/cgroup") + line("/a/c", "/x")))


def test_pid_1_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = proc(tmp_path, "/", line("/", "/sys/fs/cgroup"))
    (found / "1/mountinfo").unlink()
    with pytest.raises(CannotRunError, match=r"PID 1's mounts cannot be read: .* \(CAP_SYS_PTRACE\)"):
        node_root(POD, found)


def test_a_mount_that_is_covered_does_not_count(tmp_path: Path) -> None:
    found = proc(tmp_path, "/", line("/../..", "/sys/fs/cgroup") + line("/", "/sys/fs/cgroup"))
    with pytest.raises(CannotRunError, match="only this container's own"):
        node_root(POD, found)


def test_no_cgroup_v2(tmp_path: Path) -> None:
    for number, environ in enumerate((POD, {})):
        with pytest.raises(CannotRunError, match="cgroup v2 is not mounted"):
            node_root(environ, proc(tmp_path / str(number), "/", ""))


def test_a_configured_path_must_be_a_cgroup(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="is not a cgroup"):
        hierarchy.require_cgroup(tmp_path)
    (tmp_path / "cgroup.controllers").touch()
    assert hierarchy.require_cgroup(tmp_path) == tmp_path


INSIDE = """
import sys
from pathlib import Path
from nodenet.errors import CannotRunError
from nodenet.link import hierarchy
hierarchy.SERVICE_ACCOUNT = Path("/none")
try:
    print(hierarchy.node_root({"KUBERNETES_SERVICE_HOST": "x"}))
except CannotRunError as error:
    print(error)
"""


@pytest.mark.kernel
@pytest.mark.parametrize("given", [False, True])
def test_in_namespaces_as_a_runtime_makes_them(tmp_path: Path, given: bool) -> None:
    """A real cgroup namespace, with the container's own view mounted over the node's, with and without hostPath. The
    outer group plays a kind node: it is never left."""
    name = f"nodenet-test-{uuid.uuid4().hex[:8]}"
    root = cgroup2_root() / name
    container = root / "kubepods" / "c1"
    container.mkdir(parents=True)
    host = tmp_path / "host"
    host.mkdir()
    script = "\n".join(
        [
            f"echo $$ > {container}/cgroup.procs",
            f"mount --bind {root} {host}" if given else ":",
            f"exec unshare -C sh -c 'umount -l {cgroup2_root()} && mount -t cgroup2 none {cgroup2_root()}"
            f' && exec {sys.executable} -c "$0"\' "$INSIDE"',
        ]
    )
    try:
        # A PID namespace of its own: PID 1 is in the container, as without hostPID.
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "-p", "-f", "--mount-proc", "sh", "-c", script],
            env={"INSIDE": INSIDE, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for folder in (container, container.parent, root):
            folder.rmdir()
    if given:
        assert done.stdout == f"{host}\n"
    else:
        assert "only this container's own cgroup is visible" in done.stdout
