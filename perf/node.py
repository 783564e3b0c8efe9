"""Nodes for measurements: network namespaces with a bridge and pods.

All namespaces, mounts and files are in a private mount namespace of the run, so they disappear when its last process
ends, even after SIGKILL. Outside of it there is only a child cgroup. If a killed run leaves it, the next run removes
it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodenet.errors import CannotRunError
from nodenet.link import cgroups, mounts
from perf import tools

BRIDGE = "cni0"
GATEWAY = "10.244.1.1"
CLIENT = "10.244.1.10"
# The server pod has one address per backend of a Service. The spare address belongs to the pod to which an update
# changes.
FIRST_SERVER = 20
SPARE = "10.244.1.250"
MOST_BACKENDS = 200
CGROUP_PREFIX = "nodenet-bench-"
_FOLDER = "nodenet-bench-"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a node. `index`: ifindex of the node's end of its veth. `mac`: that of the pod's end."""

    name: str
    netns: str
    ips: tuple[str, ...]
    host_ifname: str
    index: int
    mac: str


def server_addresses(count: int) -> tuple[str, ...]:
    """The addresses of the server pod."""
    return tuple(f"10.244.1.{FIRST_SERVER + number}" for number in range(count))


@contextmanager
def own_mounts() -> Iterator[Path]:
    """Move this process to a private mount namespace, with an empty /run/netns and a folder with a BPF file system.

    This is permanent for the process. Raises CannotRunError without the permission.
    """
    tools.require("ip", "nsenter")
    try:
        mounts.own()
        tools.NETNS.mkdir(parents=True, exist_ok=True)
        mounts.mount("tmpfs", tools.NETNS, "tmpfs")
    except OSError as error:
        raise CannotRunError(f"no mounts of its own: {error}", "run it as root, with CAP_SYS_ADMIN") from error
    _forget_killed_runs()
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as folder, ExitStack() as stack:
        stack.callback(mounts.unmount, tools.NETNS)
        bpf = Path(folder) / "bpf"
        bpf.mkdir()
        mounts.mount("bpf", bpf, "bpf")
        stack.callback(mounts.unmount, bpf)
        yield Path(folder)


def _forget_killed_runs() -> None:
    """Remove the folders of killed runs. They are empty, because their mounts ended with the processes."""
    for old in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        pid = old.name.removeprefix(_FOLDER).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def own_cgroup() -> Iterator[Path]:
    """A child cgroup for the processes of pods. Removes cgroups of killed runs first."""
    root = cgroups.mount_point()
    for old in root.glob(f"{CGROUP_PREFIX}*"):
        pid = old.name.removeprefix(CGROUP_PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            cgroups.remove(old)
    path = cgroups.make(root / f"{CGROUP_PREFIX}{os.getpid()}")
    try:
        yield path
    finally:
        cgroups.remove(path)


class Node:
    """One node. It exists until the stack passed to `__init__` is closed."""

    def __init__(self, stack: ExitStack, name: str, backends: int, bridge_netfilter: bool) -> None:
        self.name = name
        self.netns = _namespace(stack, f"{name}-node")
        run_ip(self.netns, f"link set lo up\nlink add {BRIDGE} up type bridge\naddr add {GATEWAY}/24 dev {BRIDGE}\n")
        # Send no ICMP redirects: the pods are on one bridge, so the kernel would send the client a shorter route, at a
        # limited rate.
        settings = {
            "net.ipv4.ip_forward": 1,
            "net.ipv4.conf.all.send_redirects": 0,
            f"net.ipv4.conf.{BRIDGE}.send_redirects": 0,
            "net.bridge.bridge-nf-call-iptables": int(bridge_netfilter),
            "net.bridge.bridge-nf-call-ip6tables": 0,
        }
        set_sysctls(self.netns, settings)
        self.pods = {
            pod: self._pod(stack, pod, ips)
            for pod, ips in (("client", (CLIENT,)), ("server", server_addresses(backends)), ("spare", (SPARE,)))
        }

    def _pod(self, stack: ExitStack, name: str, ips: tuple[str, ...]) -> Pod:
        netns = _namespace(stack, f"{self.name}-{name}")
        ifname = f"veth-{name}"
        run_ip(
            self.netns,
            f"link add {ifname} up type veth peer name eth0 netns {netns}\nlink set {ifname} master {BRIDGE}\n",
        )
        lines = ["link set lo up", "link set eth0 up", *(f"addr add {ip}/24 dev eth0" for ip in ips)]
        run_ip(netns, "\n".join([*lines, f"route add default via {GATEWAY}", ""]))
        # Allow no sockets in TIME_WAIT: the side that closes first would collect them, and their reuse would distort
        # the figures.
        set_sysctls(netns, {"net.ipv4.tcp_max_tw_buckets": 0, "net.ipv6.conf.all.disable_ipv6": 1})
        return Pod(name, netns, ips, ifname, _index(self.netns, ifname), _mac(netns, "eth0"))


def run_ip(netns: str, batch: str) -> None:
    """Run `ip -batch`. Raises CannotRunError with its message."""
    tools.run(["ip", "-batch", "-"], batch, netns)


def set_sysctls(netns: str, values: dict[str, int]) -> None:
    """Set sysctls of one namespace. An unknown sysctl is an error."""
    lines = [f"echo {value} > /proc/sys/{name.replace('.', '/')}" for name, value in values.items()]
    tools.run(["sh", "-ec", "\n".join(lines)], netns=netns)


def _namespace(stack: ExitStack, name: str) -> str:
    tools.run(["ip", "netns", "add", name])
    stack.callback(tools.run, ["ip", "netns", "del", name])
    return name


def _index(netns: str, ifname: str) -> int:
    return int(tools.output(["ip", "-o", "link", "show", ifname], netns).split(":")[0])


def _mac(netns: str, ifname: str) -> str:
    words = tools.output(["ip", "-o", "link", "show", ifname], netns).split()
    return words[words.index("link/ether") + 1]
