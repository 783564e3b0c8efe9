"""Compiles nn_ipcache: the identities of the addresses of pods, nodes and this node. Other addresses are the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from itertools import chain

from netpolicy.holders import Claims
from nodenet.abi import U32, LpmKey
from nodenet.compile.state import LocalNode, Table
from nodenet.evolved import changed_keys, evolve
from nodenet.model import Identity, IPAddress, Node, ObjectRef, Pod

_NOWHERE = LocalNode("")


class IpcacheCompiler:
    """Compiles the addresses of one Snapshot after the other; each table is evolved from the previous one.

    If several sources claim an address, the first of these wins: an endpoint record of this node, this node's own
    addresses, a node's address, a pod's status, a gateway. A gateway is a guess: with another IPAM the first address of
    a pod network may belong to a pod. If several pods claim an address, `holder` chooses one; if that pod's labels
    are not known (compile/unread.py), the identity is UNMANAGED.
    """

    def __init__(self) -> None:
        self._pods: Mapping[ObjectRef, Pod] = {}
        self._nodes: Mapping[ObjectRef, Node] = {}
        self._identities: Mapping[ObjectRef, int] = {}
        self._local_identities: Mapping[IPAddress, int] = {}
        self._local = _NOWHERE
        self._claims: Claims[Pod] = Claims()
        self._gateways: Mapping[IPAddress, int] = {}
        self._node_addresses: Mapping[IPAddress, int] = {}
        self._table: Table = {}

    def compile(
        self,
        pods: Mapping[ObjectRef, Pod],
        nodes: Mapping[ObjectRef, Node],
        identities: Mapping[ObjectRef, int],
        local_identities: Mapping[IPAddress, int],
        local: LocalNode,
    ) -> Table:
        """`identities` (by pod) come from the policy compiler. `local_identities` (by address) are those of this node's
        endpoints; 0 means that the pod is unknown. Its address then has no identity, even if the status of an older pod
        still contains it.
        """
        touched: set[IPAddress] = set()
        changed = changed_keys(self._pods, pods)
        for ref in changed:
            touched.update(self._claims.change(self._pods.get(ref), pods.get(ref)))
        for ref in {*changed_keys(self._identities, identities)}.difference(changed):
            # The pod's addresses did not change, but their value does.
            pod = pods.get(ref)
            touched.update(pod.ips if pod is not None else ())
        if nodes is not self._nodes or local.name != self._local.name:
            touched.update(self._update_nodes(nodes, local.name))
        touched.update(_different(self._local_identities, local_identities))
        touched.update(local.addresses ^ self._local.addresses)
        self._pods, self._nodes, self._identities = pods, nodes, identities
        self._local_identities, self._local = local_identities, local
        # The order of a set differs between processes; the order of the map must not.
        changes = {LpmKey.host(address): self._value(address) for address in _in_order(touched)}
        self._table = evolve(self._table, changes)
        return self._table

    def _update_nodes(self, nodes: Mapping[ObjectRef, Node], name: str) -> Iterable[IPAddress]:
        whose = [(n, int(Identity.HOST if n.name == name else Identity.REMOTE_NODE)) for n in nodes.values()]
        guesses = {address: number for node, number in whose for address in gateways(node)}
        addresses = {address: number for node, number in whose for address in node.addresses}
        touched = [*_different(self._gateways, guesses), *_different(self._node_addresses, addresses)]
        self._gateways, self._node_addresses = guesses, addresses
        return touched

    def _value(self, address: IPAddress) -> U32 | None:
        number = self._local_identities.get(address)
        if number is None and address in self._local.addresses:
            number = int(Identity.HOST)
        if number is None:
            number = self._node_addresses.get(address)
        if number is None:
            pod = self._claims.holder(address)
            number = self._gateways.get(address, 0) if pod is None else self._of_pod(pod)
        return U32(number) if number else None

    def _of_pod(self, pod: Pod) -> int:
        # The world is no answer for a pod whose labels are not known: a deny of its labels would not match.
        return int(Identity.UNMANAGED) if pod.labels_unread else self._identities.get(pod.ref, 0)


def gateways(node: Node) -> Iterable[IPAddress]:
    """The presumed bridge addresses of a node: the first address of each pod network, which is host-local's default
    gateway."""
    return (cidr.network_address + 1 for cidr in node.pod_cidrs if cidr.num_addresses > 2)


def _in_order(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    """IPv4 first, each family by number."""
    families: tuple[list[IPAddress], list[IPAddress]] = ([], [])
    for address in addresses:
        families[isinstance(address, IPv6Address)].append(address)
    return [address for family in families for address in sorted(family, key=int)]


def _different(old: Mapping[IPAddress, int], new: Mapping[IPAddress, int]) -> Iterable[IPAddress]:
    if old is new:
        return ()
    return [address for address in dict.fromkeys(chain(old, new)) if old.get(address) != new.get(address)]
