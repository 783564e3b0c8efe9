"""What the agent knows, as frozen values. No I/O, no clock: addresses are `ipaddress` objects, labels are mappings.

Only the fields that something uses are here; `nodenet.kube` decodes the API's JSON into them once, at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from netpolicy.holders import Standing
from netpolicy.types import NamedPort as NamedPort
from nodenet.endpoint import Endpoint as Endpoint
from nodenet.endpoint import IPAddress as IPAddress
from nodenet.endpoint import IPNetwork as IPNetwork
from nodenet.endpoint import ObjectRef as ObjectRef

Labels = Mapping[str, str]


class Protocol(IntEnum):
    """Transport protocols by their IP protocol number (IANA); the names are those of the Kubernetes API."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class Direction(IntEnum):
    """Traffic direction as the pod sees it; the numbers are Hubble's TrafficDirection."""

    INGRESS = 1
    EGRESS = 2


class Identity(IntEnum):
    """Reserved identities (1-255), numbered as Cilium numbers them. Pods start at 256 (see compile/ids.py)."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    REMOTE_NODE = 6
    KUBE_APISERVER = 7


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API tells it. `ips` is empty until status.podIPs is set; `workload` is (kind, name) of its owner."""

    ref: ObjectRef
    uid: str
    labels: Labels
    node_name: str = ""
    ips: tuple[IPAddress, ...] = ()
    host_network: bool = False
    phase: str = "Pending"
    named_ports: tuple[NamedPort, ...] = ()
    workload: tuple[str, str] | None = None
    # A label could not be read: no selector can be trusted with this pod.
    labels_unread: bool = False
    # Only decides between pods that show one address. Two pods that differ in it alone are equal, so that a pod that
    # becomes ready does not count as changed (the Store knows when it matters).
    standing: Standing = field(default=Standing(), compare=False)

    @property
    def finished(self) -> bool:
        """A Succeeded or Failed pod no longer owns its address (KEP-1287's terminal phases)."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def holds_addresses(self) -> bool:
        """Whether `ips` are this pod's own now (see netpolicy.holders)."""
        return not self.host_network and not self.finished

    @property
    def claim(self) -> tuple[Standing, bool, ObjectRef]:
        """Compares pods that show one address: the greatest has it."""
        return self.standing, self.phase == "Running", self.ref


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Labels
    labels_unread: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """`addresses` are its InternalIPs, `pod_cidrs` the pod networks that the control plane gave it."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    labels: Labels = field(default_factory=dict)


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of spec.ports. `name` joins it to the EndpointSlice port of the same name."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """`cluster_ips` is empty for a headless or ExternalName Service: neither has a frontend."""

    ref: ObjectRef
    type: ServiceType
    cluster_ips: tuple[IPAddress, ...]
    ports: tuple[ServicePort, ...]
    labels: Labels = field(default_factory=dict)
    publish_not_ready_addresses: bool = False


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice with its conditions (absent ones already read as the API says: KEP-1672)."""

    addresses: tuple[IPAddress, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    target: ObjectRef | None = None


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """`service` is what the label kubernetes.io/service-name names; a nil port ("all ports") is left out."""

    ref: ObjectRef
    service: ObjectRef
    ports: tuple[ServicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
