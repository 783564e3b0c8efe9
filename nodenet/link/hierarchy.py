"""Finds the cgroup that contains every process of a node: the root of the v2 hierarchy in the cgroup namespace of the
node's PID 1.

The socket programs act on the processes below the cgroup that they are attached to. The kubelet and host processes
must be among them. A container sees by default only its own cgroup, under the same path as a host sees the root. So a
mount of cgroup v2 is compared with this process's own cgroup: both are relative to the same namespace
(cgroup_namespaces(7)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from nodenet.errors import CannotRunError
from nodenet.mounttable import rooted_mounts

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MOUNT_HINT = "mount -t cgroup2 none /sys/fs/cgroup/unified"
_HINT = "mount the node's /sys/fs/cgroup into the container (hostPath), or set hostPID: true, or name it in `cgroup`"


class _Place(NamedTuple):
    """A cgroup relative to the root of our cgroup namespace: so many levels up, then these names down."""

    up: int
    names: tuple[str, ...]

    def above(self, other: _Place) -> bool:
        """True if `other` is a descendant of this cgroup."""
        if self.up != other.up:
            return self.up > other.up and not self.names
        return len(self.names) < len(other.names) and other.names[: len(self.names)] == self.names


class _Candidate(NamedTuple):
    place: _Place
    path: Path


def node_root(environ: Mapping[str, str], proc: Path = Path("/proc")) -> Path:
    """The root cgroup of the node. Raises CannotRunError if it is not visible.

    Mounts of this process come first: a container may have the node's /sys/fs/cgroup mounted anywhere. Then those of
    PID 1, which is the node's with hostPID. On kind this is the node container's root, never the machine's: neither the
    mounts nor the PID 1 of a node container show more.
    """
    own = _own_cgroup(proc / "self/cgroup")
    candidates = list(_cgroup_mounts(proc / "self/mountinfo", Path("/")))
    in_pod = bool(environ.get("KUBERNETES_SERVICE_HOST")) or SERVICE_ACCOUNT.is_dir()
    if not in_pod and candidates:
        return _highest(candidates)
    wider = [one for one in candidates if one.place.above(own) or _is_machine_root(one.path)]
    unreadable = ""
    if not wider:
        try:
            others = _cgroup_mounts(proc / "1/mountinfo", proc / "1/root")
            wider = [one for one in others if one.place.above(own) or _is_machine_root(one.path)]
        except OSError as error:
            unreadable = f"; PID 1's mounts cannot be read: {error.strerror} (CAP_SYS_PTRACE)"
    if wider:
        return _highest(wider)
    if not candidates:
        raise CannotRunError(f"cgroup v2 is not mounted{unreadable}", _HINT if in_pod else _MOUNT_HINT)
    raise CannotRunError(
        f"cgroup: only this container's own cgroup is visible ({candidates[0].path}): Services would work for no other "
        f"process of the node{unreadable}",
        _HINT,
    )


def require_cgroup(path: Path) -> Path:
    """The path, if it is a cgroup of the v2 hierarchy. Raises CannotRunError."""
    if not (path / "cgroup.controllers").is_file():
        raise CannotRunError(f"cgroup: {path} is not a cgroup", "expected a path below the cgroup v2 mount")
    return path


def _highest(candidates: list[_Candidate]) -> Path:
    return max(candidates, key=lambda one: (one.place.up, -len(one.place.names))).path


def _is_machine_root(path: Path) -> bool:
    """Only the root of the whole hierarchy has no cgroup.type (cgroup-v2.rst). On hybrid layouts the processes of a
    container may be in this cgroup."""
    return (path / "cgroup.controllers").is_file() and not (path / "cgroup.type").exists()


def _cgroup_mounts(table: Path, below: Path) -> Iterator[_Candidate]:
    # A later mount at the same place covers the earlier one.
    for mount in {mount.target: mount for mount in rooted_mounts(table)}.values():
        if mount.fstype == "cgroup2":
            yield _Candidate(_place(mount.root), below / mount.target.relative_to("/"))


def _own_cgroup(table: Path) -> _Place:
    for line in table.read_text().splitlines():
        if line.startswith("0::"):
            return _place(line.removeprefix("0::"))
    return _Place(0, ())


def _place(path: str) -> _Place:
    parts = [part for part in path.split("/") if part]
    up = sum(part == ".." for part in parts)
    return _Place(up, tuple(parts[up:]))
