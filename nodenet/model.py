"""The model: Kubernetes objects as frozen values. Addresses are `ipaddress` objects, labels are mappings. No I/O, no
clock.

It has only the fields that are used. `nodenet.decode` builds the objects once from the API's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import ip_network
from typing import NamedTuple

from netpolicy.holders import Standing
from netpolicy.types import NamedPort as NamedPort
from nodenet.endpoint import Endpoint as Endpoint
from nodenet.endpoint import IPAddress as IPAddress
from nodenet.endpoint import IPNetwork as IPNetwork
from nodenet.endpoint import ObjectRef as ObjectRef

Labels = Mapping[str, str]


class Protocol(IntEnum):
    """Transport protocols by IP protocol number (IANA). The names are those of the Kubernetes API."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class Direction(IntEnum):
    """Traffic direction as seen by the pod. The numbers are Hubble's TrafficDirection."""

    INGRESS = 1
    EGRESS = 2


class Identity(IntEnum):
    """Reserved identities (1-255), with Cilium's numbers. Identities of pods start at 256 (see compile/ids.py)."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    # A pod whose own identity has no room in nn_ipcache.
    UNMANAGED = 3
    REMOTE_NODE = 6
    KUBE_APISERVER = 7


class HostPort(NamedTuple):
    """A port of the node that leads to a port of a pod on it. `address`: hostIP; None: all addresses of the node."""

    port: int
    target: int
    protocol: Protocol
    address: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod in the API. `ips` is empty until status.podIPs is set; `workload` is (kind, name) of its owner.
    `host_ports`: empty with hostNetwork, where each port is the node's already."""

    ref: ObjectRef
    uid: str
    labels: Labels
    node_name: str = ""
    ips: tuple[IPAddress, ...] = ()
    host_network: bool = False
    phase: str = "Pending"
    named_ports: tuple[NamedPort, ...] = ()
    workload: tuple[str, str] | None = None
    host_ports: tuple[HostPort, ...] = ()
    # A label could not be read, so no selector can be evaluated for this pod.
    labels_unread: bool = False
    # Decides between pods that claim the same address. It is not compared, so that a pod that becomes ready does not
    # count as changed; the Store checks when it matters.
    standing: Standing = field(default=Standing(), compare=False)

    @property
    def finished(self) -> bool:
        """Whether the phase is terminal: a Succeeded or Failed pod no longer owns its address."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def holds_addresses(self) -> bool:
        """Whether the pod owns its `ips` now (see netpolicy.holders)."""
        return not self.host_network and not self.finished

    @property
    def claim(self) -> tuple[Standing, bool, ObjectRef]:
        """Sort key of pods that claim the same address: the greatest owns it."""
        return self.standing, self.phase == "Running", self.ref


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Labels
    labels_unread: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """`addresses` are the InternalIPs, `outer` the ExternalIPs, `pod_cidrs` the pod networks from spec.podCIDRs.
    `taints`: the keys. `network_unavailable`, `network_reason` and `ready`: status and reason of the condition
    NetworkUnavailable, and the status of the condition Ready, "" if the Node does not have it.
    `deleting`: it has a deletionTimestamp."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    labels: Labels = field(default_factory=dict)
    taints: frozenset[str] = frozenset()
    network_unavailable: str = ""
    deleting: bool = False
    outer: tuple[IPAddress, ...] = ()
    network_reason: str = ""
    ready: str = ""


# Services and EndpointSlices with one of these labels, of any value, are not for this proxy: another one serves them
# (KEP-2447), or nothing does.
UNSERVED_LABELS = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")


# Stands for an invalid source range: no packet has this source.
NO_SOURCE: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/32"), ip_network("::/128"))


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of spec.ports, or a port of an EndpointSlice. Ports with the same `name` and protocol belong
    together. `node_port`: 0 if it has none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """`cluster_ips` is empty for headless and ExternalName Services, which have no frontend.

    `load_balancer_ips`: those with ipMode VIP. `source_ranges`: loadBalancerSourceRanges; None: every source may use
    `load_balancer_ips`. `affinity_seconds`: the timeout of sessionAffinity ClientIP; 0: no affinity. `internal_local`
    and `external_local`: the traffic policy is Local. trafficDistribution and allocateLoadBalancerNodePorts are absent,
    because the control plane does what they say: it writes hints into EndpointSlices, and assigns no nodePort.
    """

    ref: ObjectRef
    type: ServiceType
    cluster_ips: tuple[IPAddress, ...]
    ports: tuple[ServicePort, ...]
    labels: Labels = field(default_factory=dict)
    publish_not_ready_addresses: bool = False
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ips: tuple[IPAddress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] | None = None
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice with its conditions. Absent ones have the API's defaults (KEP-1672).

    `for_zones` and `for_nodes`: the hints (KEP-2433, KEP-3015), sorted."""

    addresses: tuple[IPAddress, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    target: ObjectRef | None = None
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """`service` is from the label kubernetes.io/service-name. Ports without a number ("all ports") are left out.

    `changed_at`: when the pods of the slice last changed, in seconds since the epoch; 0: the control plane does not say
    it."""

    ref: ObjectRef
    service: ObjectRef
    ports: tuple[ServicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    changed_at: float = field(default=0.0, compare=False)
