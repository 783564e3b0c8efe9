"""The input of a compilation beside the Snapshot, and its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, NamedTuple

from netpolicy.types import LabelSet, PolicyRef, RuleRef
from nodenet.compile.shares import DEFAULT_ROOM, LeftOut, Room
from nodenet.endpoint import AttachmentKey
from nodenet.model import Direction, IPAddress, IPNetwork, ObjectRef, Protocol

# Keys and values are the records that nodenet.tables declares for the map.
Table = Mapping[Any, Any]


class NodePorts(NamedTuple):
    """The node's addresses with NodePorts. `primary`: the first InternalIP of each family. `networks`: also the node's
    addresses in these networks."""

    primary: bool = True
    networks: tuple[IPNetwork, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> NodePorts:
        """From words of the configuration: `primary`, `all`, or a network. Raises ValueError for others."""
        words = list(texts)
        names = [name for word in words if word != "primary" for name in (_ALL if word == "all" else (word,))]
        return cls("primary" in words, tuple(map(ip_network, names)))


_ALL = ("0.0.0.0/0", "::/0")
DEFAULT_NODE_PORTS = NodePorts()


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This node: its name in the API, all its addresses (InternalIPs and bridge gateways), which have identity HOST,
    and the room in its maps. `services`: whether it serves Services. `node_ports`: where it serves NodePorts.
    `host_ports`: whether it serves hostPorts, because no plugin does."""

    name: str
    addresses: frozenset[IPAddress] = frozenset()
    enforce_policy: bool = True
    services: bool = True
    room: Room = DEFAULT_ROOM
    node_ports: NodePorts = DEFAULT_NODE_PORTS
    host_ports: bool = True


class ServicePortName(NamedTuple):
    """The meaning of a service_id. `name` is the port's name in spec.ports, often empty."""

    ref: ObjectRef
    name: str
    port: int
    protocol: Protocol


class HealthCheck(NamedTuple):
    """The healthCheckNodePort of a Service, and the number of its ready endpoints on this node."""

    port: int
    local_endpoints: int


class ServiceWarning(NamedTuple):
    """A Service of which a part is not served, or a Pod of which a hostPort is not."""

    ref: ObjectRef
    message: str
    kind: str = "Service"

    def __str__(self) -> str:
        return f"{self.kind} {self.ref}: {self.message}"


@dataclass(frozen=True, slots=True)
class DesiredState:
    """For each map that the compiler fills (nodenet.tables), by name: all entries that it must hold.

    The order of entries depends only on the Snapshots compiled so far.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Names:
    """The meaning of the numbers in events. `isolated_by`: subject identity -> direction -> the policies that isolate
    it."""

    services: Mapping[int, ServicePortName] = field(default_factory=dict)
    rules: Mapping[int, RuleRef] = field(default_factory=dict)
    identities: Mapping[int, LabelSet] = field(default_factory=dict)
    regions: Mapping[int, IPNetwork] = field(default_factory=dict)
    isolated_by: Mapping[int, Mapping[Direction, tuple[PolicyRef, ...]]] = field(default_factory=dict)
    # Endpoints without an identity, because their pod is not in the API or its labels are not known. They are isolated
    # in both directions.
    unknown_endpoints: frozenset[AttachmentKey] = frozenset()
    # Policies whose rules are not in force because the maps have no room for them.
    left_out: tuple[LeftOut, ...] = ()
    # How many addresses of pods have no room in nn_ipcache (compile/address_room.py).
    left_out_addresses: int = 0
    # The meaning of a service_id that is a hostPort's. `ref` is the pod.
    host_ports: Mapping[int, ServicePortName] = field(default_factory=dict)
    # Services that are not served completely, and pods with a hostPort that is not.
    warnings: tuple[ServiceWarning, ...] = ()
    # The Services with a healthCheckNodePort.
    health_checks: Mapping[ObjectRef, HealthCheck] = field(default_factory=dict)
