"""A pod's attachment on its node. These types are not in model.py, because the CNI plugin imports them, and each import
delays the start of a pod.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class ObjectRef(NamedTuple):
    """Namespace and name of an object. The namespace of cluster-scoped objects is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class AttachmentKey(NamedTuple):
    """The key of an endpoint: container ID and interface name, as in the CNI specification."""

    container_id: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's attachment on this node. The CNI plugin creates it; the agent enforces policy on it.

    `host_ifindex` and `host_ifname` are the node's side of the veth pair, `mac` is the pod's side. `endpoint_id` is
    this node's number for it (1-32767). `bridged`: its frames must pass the bridge, because its network configuration
    uses a feature of the bridge (VLANs, isolated ports, MAC check). `bridge`: the bridge of the node's side; "" in
    records of earlier versions. `hairpin`: the bridge sends frames back to it.

    `netns_id` is the number (nsid) of the pod's network namespace in the node's namespace; None: unknown.
    `netns_cookie` identifies the pod's namespace in socket events (SO_NETNS_COOKIE, Linux 5.14); 0: unknown. The agent
    reads both from the kernel. They are not saved in records, and are ignored when endpoints are compared.
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
    bridge: str = ""
    hairpin: bool = False
    netns_id: int | None = field(default=None, compare=False)
    netns_cookie: int = field(default=0, compare=False)
