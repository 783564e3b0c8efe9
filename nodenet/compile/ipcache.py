"""Compiles nn_ipcache: the identities of the addresses of pods, nodes and this node. Other addresses are the world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    cannot be read, the address has no identity.
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
        touched: dict[IPAddress, None] = {}
        for ref in changed_keys(self._pods, pods):
            touched.update(dict.fromkeys(self._claims.change(ref, self._pods.get(ref), pods.get(ref))))
        for ref in changed_keys(self._identities, identities):
            # The pod's addresses did not change, but their value does.
            pod = pods.get(ref)
            touched.update(dict.fromkeys(pod.ips if pod is not None else ()))
        if nodes is not self._nodes or local.name != self._local.name:
            touched.update(self._update_nodes(nodes, local.name))
        touched.update(dict.fromkeys(_different(self._local_identities, local_identities)))
        touched.update(dict.fromkeys(local.addresses ^ self._local.addresses))
        self._pods, self._nodes, self._identities = pods, nodes, identities
        self._local_identities, self._local = local_identities, local
        # Some addresses come from sets, whose order differs between processes; the order of the map must not.
        ordered = sorted(touched, key=lambda address: (address.version, int(address)))
        changes = {LpmKey.host(address): self._value(address) for address in ordered}
        self._table = evolve(self._table, changes)
        return self._table

    def _update_nodes(self, nodes: Mapping[ObjectRef, Node], name: str) -> Iterable[tuple[IPAddress, None]]:
        whose = [(n, int(Identity.HOST if n.name == name else Identity.REMOTE_NODE)) for n in nodes.values()]
        guesses = {address: number for node, number in whose for address in gateways(node)}
        addresses = {address: number for node, number in whose for address in node.addresses}
        touched = [*_different(self._gateways, guesses), *_different(self._node_addresses, addresses)]
        self._gateways, self._node_addresses = guesses, addresses
        return ((address, None) for address in touched)

    def _value(self, address: IPAddress) -> U32 | None:
        if address in self._local_identities:
            number = self._local_identities[address]
        elif address in self._local.addresses:
            number = int(Identity.HOST)
        elif address in self._node_addresses:
            number = self._node_addresses[address]
        else:
            pod = self._claims.holder(address)
            number = self._gateways.get(address, 0) if pod is None else self._identities.get(pod.ref, 0)
        return U32(number) if number else None


def gateways(node: Node) -> Iterable[IPAddress]:
    """The presumed bridge addresses of a node: the first address of each pod network, which is host-local's default
    gateway."""
    return (cidr.network_address + 1 for cidr in node.pod_cidrs if cidr.num_addresses > 2)


def _different(old: Mapping[IPAddress, int], new: Mapping[IPAddress, int]) -> Iterable[IPAddress]:
    if old is new:
        return ()
    return [address for address in dict.fromkeys(chain(old, new)) if old.get(address) != new.get(address)]
