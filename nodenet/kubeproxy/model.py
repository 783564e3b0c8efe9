"""Services as the renderers take them: addresses are text, and the backends are those that this node uses. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# The bit of the packet mark with which kube-proxy asks for masquerading (--iptables-masquerade-bit 14).
MARK = "0x4000"


class Backend(NamedTuple):
    """One endpoint. `here`: it is on this node."""

    address: str
    port: int
    here: bool = False

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """One port of one Service, for one IP family. `protocol` is "tcp" or "udp".

    `backends` are for traffic policy Cluster, `local_backends` for Local. Without `backends` the Service has no usable
    endpoint in the whole cluster. `source_ranges`: empty: every source may use the load balancer's addresses.
    """

    name: str
    cluster_ip: str
    backends: tuple[Backend, ...]
    namespace: str
    port: int
    port_name: str = ""
    protocol: str = "tcp"
    local_backends: tuple[Backend, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    node_port: int = 0
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0

    @property
    def full_name(self) -> str:
        """The ServicePortName in kube-proxy's format."""
        return f"{self.namespace}/{self.name}" + (f":{self.port_name}" if self.port_name else "")

    @property
    def is_external(self) -> bool:
        """Whether it has an address for traffic from outside."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def uses_cluster(self) -> bool:
        """Whether it needs `backends`. External addresses do: traffic of this node's pods is not subject to the
        external policy."""
        return bool(self.backends) and (not self.internal_local or self.is_external)

    @property
    def uses_local(self) -> bool:
        return bool(self.local_backends) and (self.internal_local or (self.external_local and self.is_external))

    @property
    def internal(self) -> tuple[Backend, ...]:
        """The backends of traffic to the ClusterIP."""
        return self.local_backends if self.internal_local else self.backends

    @property
    def external(self) -> tuple[Backend, ...]:
        """The backends of traffic from outside."""
        return self.local_backends if self.external_local else self.backends

    def reachable(self) -> Iterator[Backend]:
        """All backends that a chain of the Service leads to, each one once."""
        if self.uses_cluster:
            yield from self.backends
        if self.uses_local:
            yield from (b for b in self.local_backends if not (self.uses_cluster and b in self.backends))


Services = tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """What the rules depend on beside the Services. `version`: the IP family.

    `pod_cidr`: the network of all pods; traffic from elsewhere to a ClusterIP is masqueraded. `node_ip`: this
    node's address. `node_port_ips`: the addresses that accept NodePorts; empty: all of the node but the loopback's.
    """

    version: int
    pod_cidr: str
    service_cidr: str = ""
    node_ip: str = ""
    node_port_ips: tuple[str, ...] = ()
    localhost_node_ports: bool = False

    @property
    def loopback(self) -> str:
        return "127.0.0.0/8" if self.version == 4 else "::1/128"

    @property
    def bits(self) -> int:
        """The length of an address."""
        return 32 if self.version == 4 else 128


def short_hash(text: str, length: int) -> str:
    """The hash in kube-proxy's chain names: the start of a base32 SHA-256 (16 letters for iptables, 8 for nftables)."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]
