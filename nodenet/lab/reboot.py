"""Simulates a power failure of a node and its next boot. Synchronous; works on kernel objects and files.

Lost: all processes, the namespaces of the node and its pods, links, bpffs with all pins, cgroups, and everything below
/run. Kept, as on a disk: configuration, logs, /var/lib/cni (leases and the runtime's results). New: the kernel's boot
id.
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

# The files in the node's folder that survive. The folder is its run_dir; on a real node the rest is on a tmpfs.
_ON_DISK = ("agent.yaml", "kubeconfig", "agent.log", "cni", "clock")
_BOOT_ID = "boot_id"


def boot_id_file(folder: Path) -> Path:
    """The file with a node's boot id after its first reboot. Before, the node has the machine's boot id."""
    return folder / _BOOT_ID


def power_off(plan: LabPlan, node: NodePlan, pods: Iterable[Path]) -> None:
    """Remove everything that a power failure destroys. `pods`: the namespaces of the node's pods. Processes get no
    SIGTERM, peers no FIN, and the CNI plugin no DEL."""
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
    """Make the node again. Returns its new boot id."""
    fabric.make_node(plan, node)
    found = str(uuid.uuid4())
    boot_id_file(names.node_dir(plan.name, node.name)).write_text(found + "\n")
    return found


def _unplug(plan: LabPlan, node: NodePlan) -> None:
    """Delete the node's veth. Otherwise its end in the fabric would remain until some time after the namespace is gone,
    and keep the name in use."""

    def delete() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=node.name):
                ip.link("del", index=index)

    netns.call(names.fabric_netns(plan.name), delete)
