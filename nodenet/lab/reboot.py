"""What a node loses when its power goes, and what it has when it is back. Synchronous, on kernel objects and files.

Lost: every process, the node's and its pods' namespaces, links, bpffs with all pins, cgroups, and what is below /run.
Kept, as on a disk: configuration, logs, /var/lib/cni (leases and the runtime's results). New: the kernel's boot id.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import IPRoute

from nodenet.lab import fabric, groups, names, teardown
from nodenet.lab.layout import LabPlan, NodePlan
from nodenet.link import cgroups, mounts, netns

# In the node's folder, which is its run_dir: everything else there is on a tmpfs of a real node. The clock goes on.
_ON_DISK = ("agent.yaml", "kubeconfig", "agent.log", "cni", "clock")
_BOOT_ID = "boot_id"


def boot_id_file(folder: Path) -> Path:
    """Where a node's boot id is once it has been rebooted; before, the machine's own counts."""
    return folder / _BOOT_ID


def power_off(plan: LabPlan, node: NodePlan, pods: Iterable[Path]) -> None:
    """`pods` are the namespaces of the node's pods. Nothing is told to anybody: no SIGTERM, no CNI DEL, no FIN."""
    _unplug(plan, node)
    cgroups.remove(groups.node_root(plan.name, node.name))
    folder = names.node_dir(plan.name, node.name)
    for target in mounts.mount_points(folder):
        mounts.unmount(target)
    own = names.netns_path(names.node_netns(plan.name, node.name))
    for path in (*pods, own):
        teardown.end_visitors(path)
        netns.delete(path)
    for path in folder.iterdir():
        if path.name in _ON_DISK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def power_on(plan: LabPlan, node: NodePlan) -> str:
    """The boot id of the new life."""
    fabric.make_node(plan, node)
    found = str(uuid.uuid4())
    boot_id_file(names.node_dir(plan.name, node.name)).write_text(found + "\n")
    return found


def _unplug(plan: LabPlan, node: NodePlan) -> None:
    """Without this the other end in the fabric goes some time after the namespace, and keeps the name until then."""

    def delete() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=node.name):
                ip.link("del", index=index)

    netns.call(names.fabric_netns(plan.name), delete)
