"""Computes the addresses of a lab's nodes from the lab's size and IP families. Pure.

All labs use the same addresses. They do not conflict, because the network namespaces of a lab have no connection to the
host or to another lab.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

from nodenet.errors import BadInputError
from nodenet.lab import names
from nodenet.model import IPAddress, IPNetwork

IPInterface = IPv4Interface | IPv6Interface

MAX_NODES = 200
API_PORT = 6443
DEFAULT_MASK_SIZE = 24
# Node n has the address .10+n in the fabric's network. The fabric itself, with the API, has .1.
_FIRST_NODE = 10
_FABRIC4 = IPv4Network("172.30.0.0/24")
_FABRIC6 = IPv6Network("fd00:172:30::/64")
_SERVICES4 = IPv4Network("10.96.0.0/16")
_SERVICES6 = IPv6Network("fd00:10:96::/112")


class IPFamily(StrEnum):
    """The values of --ip-family. In dual stack IPv4 is the primary family."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    DUAL = "dual"

    @property
    def versions(self) -> tuple[int, ...]:
        return {IPFamily.IPV4: (4,), IPFamily.IPV6: (6,), IPFamily.DUAL: (4, 6)}[self]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: its addresses in the fabric's network, and its pod networks."""

    name: str
    addresses: tuple[IPInterface, ...]
    pod_cidrs: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class LabPlan:
    """A whole lab. `fabric`: the fabric's own addresses. The API listens on each of them at API_PORT."""

    name: str
    family: IPFamily
    fabric: tuple[IPInterface, ...]
    service_cidrs: tuple[IPNetwork, ...]
    nodes: tuple[NodePlan, ...]

    @property
    def api_addresses(self) -> tuple[IPAddress, ...]:
        return tuple(interface.ip for interface in self.fabric)

    def node(self, name: str) -> NodePlan:
        """Raises BadInputError if the lab has no node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise BadInputError(f"lab {self.name}: no node {name!r}", f"its nodes: {known}")


def plan(name: str, nodes: int, family: IPFamily, mask_size: int = DEFAULT_MASK_SIZE) -> LabPlan:
    """Compute a lab with `nodes` nodes. `mask_size` is the prefix length of each node's IPv4 pod network.

    Raises BadInputError for a bad name, a number of nodes outside 1-200 or a mask outside 24-30.
    """
    names.check_lab_name(name)
    if not 1 <= nodes <= MAX_NODES:
        raise BadInputError(f"--nodes: expected 1 to {MAX_NODES}, got {nodes}")
    if not DEFAULT_MASK_SIZE <= mask_size <= 30:
        raise BadInputError(f"--node-cidr-mask-size: expected {DEFAULT_MASK_SIZE} to 30, got {mask_size}")
    return LabPlan(
        name=name,
        family=family,
        fabric=_addresses(family, 1),
        service_cidrs=tuple(n for n in (_SERVICES4, _SERVICES6) if n.version in family.versions),
        nodes=tuple(_node(number, family, mask_size) for number in range(1, nodes + 1)),
    )


def _node(number: int, family: IPFamily, mask_size: int) -> NodePlan:
    pods: list[IPNetwork] = []
    if 4 in family.versions:
        pods.append(IPv4Network((f"10.244.{number}.0", mask_size)))
    if 6 in family.versions:
        pods.append(IPv6Network(f"fd00:10:244:{number:x}::/64"))
    return NodePlan(names.node_name(number), _addresses(family, _FIRST_NODE + number), tuple(pods))


def _addresses(family: IPFamily, host: int) -> tuple[IPInterface, ...]:
    found: list[IPInterface] = []
    if 4 in family.versions:
        found.append(IPv4Interface((_FABRIC4[host], _FABRIC4.prefixlen)))
    if 6 in family.versions:
        found.append(IPv6Interface((_FABRIC6[host], _FABRIC6.prefixlen)))
    return tuple(found)


def url_host(address: IPAddress) -> str:
    """The address as the host part of a URL."""
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)


def to_json(lab: LabPlan, mask_size: int) -> dict[str, Any]:
    """The inputs from which `from_json` computes the same plan."""
    return {"name": lab.name, "nodes": len(lab.nodes), "ipFamily": lab.family.value, "nodeCidrMaskSize": mask_size}


def from_json(data: dict[str, Any]) -> LabPlan:
    return plan(data["name"], data["nodes"], IPFamily(data["ipFamily"]), data["nodeCidrMaskSize"])


def gateway(network: IPNetwork) -> IPv4Address | IPv6Address:
    """The first address of a pod network. It belongs to the node, as with host-local's default."""
    return network[1]
