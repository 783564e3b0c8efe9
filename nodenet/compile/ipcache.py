"""Addresses -> identities: pods, nodes, and this node itself -> nn_ipcache. What is not in it is the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netpolicy.holders import holders
from nodenet.abi import U32, LpmKey
from nodenet.compile.state import LocalNode, Table
from nodenet.model import Identity, IPAddress, Node, ObjectRef, Pod


def compile_ipcache(
    pods: Mapping[ObjectRef, Pod],
    nodes: Mapping[ObjectRef, Node],
    identities: Mapping[ObjectRef, int],
    local_identities: Mapping[IPAddress, int],
    local: LocalNode,
) -> Table:
    """The newest knowledge wins: an endpoint record of this node over a node's address over a pod's status over a
    gateway, which is a guess: with another IPAM the first address of a pod network is some pod's. Of several pods that
    show one address `holders` chooses; if the labels of that one cannot be read, the address has no identity.

    `identities` by pod are the policy compiler's, `local_identities` by address are those of this node's endpoints,
    where 0 means that the pod is not known: its address is then nobody's, whatever an older pod's status says.
    """
    whose_nodes = [
        (node, int(Identity.HOST if node.name == local.name else Identity.REMOTE_NODE)) for node in nodes.values()
    ]
    found = {address: whose for node, whose in whose_nodes for address in gateways(node)}
    found |= {address: identities.get(pod.ref, 0) for address, pod in holders(pods.values()).items()}
    for node, whose in whose_nodes:
        found.update(dict.fromkeys(node.addresses, whose))
    found.update(dict.fromkeys(local.addresses, int(Identity.HOST)))
    found.update(local_identities)
    ordered = sorted(found, key=lambda address: (address.version, int(address)))
    return {LpmKey.host(address): U32(found[address]) for address in ordered if found[address]}


def gateways(node: Node) -> Iterable[IPAddress]:
    """The bridge address of each of the node's pod networks: its first one, as host-local's default gateway is."""
    return (cidr.network_address + 1 for cidr in node.pod_cidrs if cidr.num_addresses > 2)
