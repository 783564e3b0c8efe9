"""Compiles a Snapshot into the desired contents of the BPF maps and the meaning of their numbers. Pure, except that
numbers are remembered between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple, TypeVar

from nodenet.abi import U32, AddressKey
from nodenet.compile import identities, slots
from nodenet.compile.address_room import Addresses, fit, pod_networks
from nodenet.compile.affinity import clients
from nodenet.compile.backends import Here
from nodenet.compile.endpoints import EndpointTables, compile_endpoints, local_pods
from nodenet.compile.host_ports import HostPortCompiler, HostPorts
from nodenet.compile.ids import Ids
from nodenet.compile.ipcache import IpcacheCompiler
from nodenet.compile.lb import ServiceCompiler, ServiceTables
from nodenet.compile.policy import PolicyCompiler, PolicyTables
from nodenet.compile.policy_set import PolicySet, with_nodes
from nodenet.compile.state import DesiredState, LocalNode, Names, ServicePortName, Table
from nodenet.compile.unread import UnreadLabels
from nodenet.model import IPAddress, Labels, Node, ObjectRef, Pod
from nodenet.store import Snapshot

__all__ = ["Compiler", "DesiredState", "Ids", "LocalNode", "Names", "ServicePortName", "Table", "compile_once"]

T = TypeVar("T")
_NONE: Mapping[Any, Any] = {}
ZONE_LABEL = "topology.kubernetes.io/zone"


class _Rest(NamedTuple):
    """What does not follow from Services and EndpointSlices."""

    here: Here
    hosted: HostPorts
    policies: PolicyTables
    endpoints: EndpointTables
    addresses: Addresses
    callers: Table
    sources: Table


class Compiler:
    """Compiles the Snapshots of one node, one after the other. Only the parts that a change affects are compiled again.

    Not thread-safe. The returned tables must not be modified. A table that did not change is the same object as in the
    previous result, so that callers need not compare its entries.
    """

    def __init__(self, ids: Ids | None = None) -> None:
        self.ids = ids or Ids()
        self._services = ServiceCompiler(self.ids)
        self._policy = PolicyCompiler(self.ids)
        self._unread_labels = UnreadLabels()
        self._host_ports = HostPortCompiler()
        self._ipcache = IpcacheCompiler()
        self._held: Mapping[str, Table] = {}
        self._memo: dict[str, tuple[tuple[Any, ...], Any]] = {}
        self._named: tuple[Any, ...] = (None,)
        self._names = Names()

    def restore(self, tables: Mapping[str, Table]) -> None:
        """Call before the first compilation: take over the numbers and slots that the kernel's maps hold."""
        self._services = ServiceCompiler(self.ids, slots.restore(self.ids, tables))
        self._held = {name: tables.get(name, {}) for name in ("nn_ipcache", "nn_cidr")}

    def settle(self) -> None:
        """Call when the maps hold the last result: numbers of deleted things may now be reused."""
        self.ids.settle()

    def compile(self, snapshot: Snapshot, local: LocalNode) -> tuple[DesiredState, Names]:
        """Raises OverflowError when a space of numbers is full."""
        # Services of kube-proxy have no entries in our maps.
        served, slices_ = (snapshot.services, snapshot.slices) if local.services else (_NONE, _NONE)
        # Most changes are of Services and EndpointSlices. They concern none of the rest.
        inputs = (
            *(snapshot.pods, snapshot.namespaces, snapshot.policies, snapshot.cluster_policies),
            *(snapshot.endpoints, snapshot.nodes, local),
        )
        rest = self._remember("rest", inputs, lambda *_: self._rest(snapshot, local))
        services = self._services.compile(served, slices_, rest.here, rest.hosted)
        return _state(services, rest), self._name(services, rest)

    def _name(self, services: ServiceTables, rest: _Rest) -> Names:
        """The last result if nothing of it changed: most changes are of endpoints, which have no names."""
        inputs = (services.names, services.host_ports, services.warnings, services.health_checks, rest)
        if not all(map(is_, inputs, self._named)):
            self._named, self._names = inputs, _names(services, rest)
        return self._names

    def _rest(self, snapshot: Snapshot, local: LocalNode) -> _Rest:
        """Everything that does not follow from Services and EndpointSlices."""
        here = self._remember("here", (snapshot.nodes, local), _here)
        hosted = self._remember("host ports", (snapshot.endpoints, snapshot.pods, local), self._host_ports.compile)
        wide = self._remember("wide", (snapshot.cluster_policies, snapshot.nodes), with_nodes)
        policies = self._remember("set", (snapshot.policies, wide), PolicySet)
        callers = self._remember("clients", (snapshot.endpoints if local.services else _NONE,), clients)
        sources = self._remember("sources", (snapshot.nodes if local.services else _NONE, local.name), _sources)
        return _Rest(here, hosted, *self._others(snapshot, policies, local), callers, sources)

    def _others(
        self, snapshot: Snapshot, given: PolicySet, local: LocalNode
    ) -> tuple[PolicyTables, EndpointTables, Addresses]:
        """All tables that do not depend on Services."""
        pods = self._remember("pods", (snapshot.pods, snapshot.namespaces), self._unread_labels.compile)
        policies = self._policies(snapshot, given, pods, local)
        endpoints = self._remember(
            "endpoints",
            (snapshot.endpoints, pods, policies.identities, policies.flags, local.enforce_policy),
            compile_endpoints,
        )
        ipcache = self._remember(
            "ipcache",
            (pods, snapshot.nodes, policies.identities, endpoints.identities, local),
            self._ipcache.compile,
        )
        networks = self._remember("pod networks", (snapshot.nodes,), pod_networks)
        addresses = self._remember("room", (ipcache, policies.labels, endpoints.identities, local.room, networks), fit)
        return policies, endpoints, addresses

    def _policies(
        self, snapshot: Snapshot, given: PolicySet, pods: Mapping[ObjectRef, Pod], local: LocalNode
    ) -> PolicyTables:
        # Numbers of identities can only be restored when the first Snapshot shows which pod has which address.
        if self._held:
            if any(self._held.values()):
                identities.restore(self.ids, pods, list(given.values()), *self._held.values())
            self._held = {}
        namespaces = self._remember("namespaces", (snapshot.namespaces,), _namespace_labels)
        subjects = local_pods(snapshot.endpoints, pods)

        inputs = (pods, namespaces, given, subjects, local.room, local.enforce_policy)
        return self._remember("policies", inputs, self._policy.compile)

    def _remember(self, part: str, inputs: tuple[Any, ...], run: Callable[..., T]) -> T:
        """Run one part, or return its last result if its inputs are the same. A failed run is not remembered."""
        last = self._memo.get(part)
        if last is not None and all(map(_same, last[0], inputs)):
            result: T = last[1]
            return result
        result = run(*inputs)
        self._memo[part] = inputs, result
        return result


def compile_once(snapshot: Snapshot, local: LocalNode) -> tuple[DesiredState, Names]:
    """Compile one Snapshot from nothing, as a new node would."""
    return Compiler().compile(snapshot, local)


def _same(old: object, new: object) -> bool:
    """Mappings are compared by identity: the store returns the same object while nothing changed."""
    return old is new or (not isinstance(new, Mapping) and old == new)


def _here(nodes: Mapping[ObjectRef, Node], local: LocalNode) -> Here:
    node = nodes.get(ObjectRef("", local.name)) or Node(local.name)
    firsts = {address.version: address for address in reversed(node.addresses)}.values()
    found = set(firsts) if local.node_ports.primary else set()
    for address in local.addresses if local.node_ports.networks else ():
        # kube-proxy's nftables mode serves no NodePort on the loopback.
        if not address.is_loopback and not address.is_link_local:
            found |= {address for network in local.node_ports.networks if address in network}
    zone = node.labels.get(ZONE_LABEL, "")
    return Here(local.name, zone, *(tuple(sorted(some, key=_address_order)) for some in (found, firsts)))


def _sources(nodes: Mapping[ObjectRef, Node], name: str) -> Table:
    """nn_source_addr: the node's first address of each IP version."""
    node = nodes.get(ObjectRef("", name)) or Node(name)
    firsts = {address.version: address for address in reversed(node.addresses)}
    return {U32(version): AddressKey(address) for version, address in sorted(firsts.items())}


def _address_order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


def _namespace_labels(namespaces: Mapping[Any, Any]) -> dict[str, Labels]:
    return {namespace.name: namespace.labels for namespace in namespaces.values()}


def _state(services: ServiceTables, rest: _Rest) -> DesiredState:
    return DesiredState(
        {
            "nn_frontend": services.frontends,
            "nn_service_addr": services.addresses,
            "nn_backend": services.backends,
            "nn_member": services.members,
            "nn_revnat": services.revnat,
            "nn_source_range": services.source_ranges,
            "nn_client": rest.callers,
            "nn_source_addr": rest.sources,
            "nn_policy": rest.policies.policy,
            "nn_cidr": rest.policies.cidr,
            "nn_ipcache": rest.addresses.table,
            "nn_endpoint": rest.endpoints.endpoints,
        }
    )


def _names(services: ServiceTables, rest: _Rest) -> Names:
    policies, endpoints = rest.policies, rest.endpoints
    return Names(
        services=services.names,
        host_ports=services.host_ports,
        rules=policies.rules,
        identities=policies.labels,
        regions=policies.regions,
        isolated_by=policies.isolating,
        unknown_endpoints=endpoints.unknown,
        left_out=policies.left_out,
        left_out_addresses=rest.addresses.left_out,
        warnings=services.warnings,
        health_checks=services.health_checks,
    )
