"""What a node needs before the agent can start: checked by `nodenet agent --check`, made by `nodenet node init`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from nodenet.agent.datapath import cgroup_of, refuse_kube_proxy, refuse_later_state
from nodenet.agent.features import features
from nodenet.bpf import build, probe
from nodenet.bpf.pins import is_bpffs, require_bpffs
from nodenet.config import Config
from nodenet.errors import CannotRunError, NodenetError
from nodenet.link import mounts
from nodenet.mounttable import mounts as mount_table

# Where Linux distributions mount the BPF file system; the kernel makes this folder in sysfs for it.
BPFFS = Path("/sys/fs/bpf")
_INIT_MOUNTS = Path("/proc/1/mounts")


def problems(config: Config) -> Iterator[NodenetError]:
    """What prevents the start of the agent here, each as the error that the start would end with."""
    checks: tuple[Callable[[], object], ...] = (
        lambda: require_bpffs(config.bpffs),
        lambda: refuse_later_state(config),
        lambda: refuse_kube_proxy(config),
        lambda: cgroup_of(config),
        lambda: _kernel(config),
    )
    for check in checks:
        try:
            check()
        except NodenetError as error:
            yield error


def _kernel(config: Config) -> None:
    found = features()
    probe.require(found)
    build.find(config.cache_dir, probe.available(found, probe.CAST_CTX))


def mount_bpffs(config: Config) -> bool:
    """Mount a bpffs for the agent's pins. Returns False if the folder is in one already. Raises CannotRunError."""
    if is_bpffs(config.bpffs):
        return False
    target = BPFFS if config.bpffs.is_relative_to(BPFFS) else config.bpffs
    try:
        target.mkdir(parents=True, exist_ok=True)
        mounts.mount("bpf", target, "bpf")
    except OSError as error:
        raise CannotRunError(
            f"{target}: no BPF file system can be mounted: {error.strerror}",
            f"it needs CAP_SYS_ADMIN; or run on the node: mount -t bpf bpf {target}",
        ) from error
    _require_propagation(target)
    return True


def _require_propagation(target: Path) -> None:
    """In a container with hostPID, PID 1 shows whether the mount reached the node. Without hostPID it shows our own."""
    try:
        reached = any(mount == (target, "bpf") for mount in mount_table(_INIT_MOUNTS))
    except OSError:
        return  # without CAP_SYS_PTRACE: not known
    if not reached:
        mounts.unmount(target)
        raise CannotRunError(
            f"{target}: the BPF file system that was mounted in this container did not reach the node",
            "mountPropagation: Bidirectional, for the node's /sys/fs/bpf",
        )
