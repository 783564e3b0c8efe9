"""A pod's attachment on its node, and the few words that it takes: apart from model.py, because the CNI plugin needs no
more, and a pod's start waits for everything that the plugin imports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class ObjectRef(NamedTuple):
    """The name of a namespaced object; cluster-scoped ones have an empty namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class AttachmentKey(NamedTuple):
    """What names an endpoint: the CNI specification's (container id, interface name)."""

    container_id: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's attachment on this node: what the CNI plugin made and the agent polices.

    `host_ifindex` and `host_ifname` are the node's side of the veth pair, `mac` is the pod's side. `endpoint_id` is
    this node's number for it (1-65535). `bridged`: its frames stay on the bridge, because its configuration asks
    something of the bridge itself (VLANs, isolated ports, its MAC check).

    `netns_id` is the number (nsid) by which the node's namespace knows the pod's, None: not known. `netns_cookie` is
    the kernel's number of the pod's namespace in events of sockets (SO_NETNS_COOKIE, Linux 5.14), 0: not known. The
    agent asks the kernel for both: they are in no record, and endpoints that differ in nothing else are equal.
    """

    endpoint_id: int
    container_id: str
    ifname: str
    netns: str
    host_ifname: str
    host_ifindex: int
    mac: str
    ips: tuple[IPAddress, ...]
    pod: ObjectRef
    pod_uid: str = ""
    bridged: bool = False
    netns_id: int | None = field(default=None, compare=False)
    netns_cookie: int = field(default=0, compare=False)
