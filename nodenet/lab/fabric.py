"""Creates the kernel objects of a lab's nodes: the fabric's bridge, a veth to each node, addresses, routes, bpffs
mounts.

    nn.<lab>.fabric: bridge fabric0 (172.30.0.1, fd00:172:30::1)
        |- node1 <-veth-> eth0 in nn.<lab>.node1 (172.30.0.11, fd00:172:30::b)
        |- node2 <-veth-> eth0 in nn.<lab>.node2 ...

The fabric represents the network outside the cluster: it is the nodes' default gateway and has routes back to the pod
networks, but it does not forward between nodes. The agents make the routes between nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from nodenet.errors import CannotRunError
from nodenet.lab import groups, names
from nodenet.lab.layout import IPInterface, LabPlan, NodePlan
from nodenet.link import cgroups, mounts, netns

BRIDGE = "fabric0"
UPLINK = "eth0"
# IFA_F_NODAD: skip duplicate address detection. A lab's addresses are unique by construction, so they can be used at
# once.
_NODAD = 0x02
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def build(plan: LabPlan) -> None:
    """Create the namespaces, cgroups and bpffs mounts of a lab. Raises OSError and netlink errors."""
    root = netns.create(names.fabric_netns(plan.name))
    netns.call(root, _make_bridge, plan)
    for node in plan.nodes:
        make_node(plan, node)
    netns.call(root, _route_back, plan)


def _make_bridge(plan: LabPlan) -> None:
    _write_sysctls(_sysctls(plan, forward=False))
    with IPRoute() as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
        _address(ip, BRIDGE, plan.fabric)
        _up(ip, BRIDGE)


def make_node(plan: LabPlan, node: NodePlan) -> None:
    """Create one node in an existing fabric: namespace, uplink, cgroups, bpffs. Raises OSError and netlink errors."""
    path = netns.create(names.node_netns(plan.name, node.name))
    netns.call(names.fabric_netns(plan.name), _connect, node, path)
    netns.call(path, _configure_node, plan, node)
    cgroups.make(groups.node_system(plan.name, node.name))
    cgroups.make(groups.node_root(plan.name, node.name) / "pods")
    bpffs = names.node_dir(plan.name, node.name) / "bpf"
    bpffs.mkdir(parents=True)
    mounts.mount("bpf", bpffs, "bpf")


def _connect(node: NodePlan, path: Path) -> None:
    """Call it in the fabric's namespace. Creates a veth pair whose other end, eth0, is in the node from the start."""
    with netns.opened(path) as fd, IPRoute() as ip:
        ip.link("add", ifname=node.name, kind="veth", peer={"ifname": UPLINK, "net_ns_fd": fd})
        ip.link("set", index=_index(ip, node.name), master=_index(ip, BRIDGE), state="up")


def _configure_node(plan: LabPlan, node: NodePlan) -> None:
    _write_sysctls(_sysctls(plan, forward=True))
    with IPRoute() as ip:
        _address(ip, UPLINK, node.addresses)
        _up(ip, UPLINK)
        for interface in plan.fabric:
            ip.route("add", dst=_DEFAULT[interface.version], gateway=str(interface.ip), oif=_index(ip, UPLINK))


def _route_back(plan: LabPlan) -> None:
    """Call it in the fabric's namespace. Adds the routes to pods by way of their nodes."""
    with IPRoute() as ip:
        for node in plan.nodes:
            via = {interface.version: str(interface.ip) for interface in node.addresses}
            for network in node.pod_cidrs:
                ip.route("add", dst=str(network), gateway=via[network.version])


def _sysctls(plan: LabPlan, *, forward: bool) -> dict[str, str]:
    """The sysctls of one namespace. A node must forward; kubeadm's preflight requires that too."""
    values = {"net.ipv4.ip_forward": str(int(forward)), "net.ipv4.conf.all.rp_filter": "0"}
    if 6 in plan.family.versions:
        values |= {
            "net.ipv6.conf.all.disable_ipv6": "0",
            "net.ipv6.conf.default.disable_ipv6": "0",
            "net.ipv6.conf.all.forwarding": str(int(forward)),
            "net.ipv6.conf.all.accept_dad": "0",
            "net.ipv6.conf.default.accept_dad": "0",
        }
    return values


def _index(ip: Any, name: str) -> int:
    return int(ip.link_lookup(ifname=name)[0])


def _up(ip: Any, name: str) -> None:
    ip.link("set", index=_index(ip, name), state="up")


def _address(ip: Any, name: str, addresses: tuple[IPInterface, ...]) -> None:
    for interface in addresses:
        flags = {"flags": _NODAD} if interface.version == 6 else {}
        prefixlen = interface.network.prefixlen
        ip.addr("add", index=_index(ip, name), address=str(interface.ip), prefixlen=prefixlen, **flags)


def _write_sysctls(values: dict[str, str]) -> None:
    """Write sysctls. /proc/sys/net is that of the calling thread's namespace."""
    for key, value in values.items():
        path = Path("/proc/sys") / key.replace(".", "/")
        if not path.exists():
            raise CannotRunError(f"this kernel has no sysctl {key}", "a lab without IPv6: --ip-family ipv4")
        path.write_text(value)
