"""Builds the NameTable of flows from the Snapshot and the compiler's Names. Pure. Runs once per change, not per
event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from operator import is_
from typing import Any

from netpolicy.holders import Claims
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, Policy, Rule, RuleRef
from nodenet.abi import U32, LpmKey
from nodenet.compile.endpoints import pod_of, precedence
from nodenet.compile.state import LocalNode, Names
from nodenet.endpoint import AttachmentKey
from nodenet.evolved import Evolved, changed_keys, evolve
from nodenet.flow.past import PastNames
from nodenet.flow.service_names import ServiceNames
from nodenet.flow.types import (
    RESERVED,
    NameTable,
    Party,
    PolicyMatch,
    PolicyName,
    Workload,
)
from nodenet.model import Endpoint, Identity, IPAddress, ObjectRef, Pod
from nodenet.store import Snapshot

# Cilium's label for a pod's namespace. Hubble users filter by it.
NAMESPACE_LABEL = "io.kubernetes.pod.namespace"


class NameTableBuilder:
    """Builds each NameTable from the previous one. The cost is mostly proportional to the change."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._names = Names()
        # Of the last table. At first nothing is the same.
        self._inputs: tuple[Any, ...] = (None,)
        self._table = NameTable()
        self._node = LocalNode("")
        self._ipcache: Mapping[LpmKey, U32] = {}
        self._claims: Claims[Pod] = Claims()
        self._parties: dict[ObjectRef, tuple[Pod, int, Party]] = {}
        # The last name of each of this node's endpoints, by endpoint and by address.
        self._local: dict[AttachmentKey, Party] = {}
        self._local_addresses: Mapping[IPAddress, Party] = {}
        self._nodes: Mapping[IPAddress, Party] = {}
        # Names by address: only pods, and pods together with nodes (which win).
        self._pods: Mapping[IPAddress, Party] = Evolved({})
        self._addresses: Mapping[IPAddress, Party] = Evolved({})
        self._identities: Mapping[int, Party] = Evolved({})
        self._rules: Mapping[int, PolicyName] = Evolved({})
        self._isolated_by: Mapping[tuple[int, int], tuple[PolicyName, ...]] = {}
        self._services = ServiceNames()
        self._past = PastNames()
        self._endpoints: Mapping[int, Party] = {}
        self._netns_cookies: Mapping[int, Party] = {}

    def build(
        self,
        snapshot: Snapshot,
        names: Names,
        node: LocalNode,
        ipcache: Mapping[LpmKey, U32] | None = None,
        *,
        now: int,
    ) -> NameTable:
        """The table for one Snapshot. `ipcache` is the compiled table; the identities of named pods are read from it.
        `now`: nanoseconds of CLOCK_MONOTONIC."""
        inputs = (
            *(snapshot.pods, snapshot.endpoints, snapshot.nodes, snapshot.services),
            *(snapshot.policies, snapshot.cluster_policies, names, ipcache),
        )
        # Most changes are of EndpointSlices, which have no names.
        if node != self._node or not all(map(is_, inputs, self._inputs)):
            self._table = self._update(snapshot, names, node, {} if ipcache is None else ipcache)
            self._snapshot, self._names, self._node, self._inputs = snapshot, names, node, inputs
        past = self._past.update(self._pods, now)
        if past is not self._table.past:
            self._table = replace(self._table, past=past)
        return self._table

    def _update(self, snapshot: Snapshot, names: Names, node: LocalNode, ipcache: Mapping[LpmKey, U32]) -> NameTable:
        """The table with the previous owners of addresses as before."""
        before = self._snapshot
        inputs = (snapshot.pods, snapshot.endpoints, snapshot.nodes, ipcache)
        # A change of a Service affects no address of a pod.
        if node != self._node or not all(
            map(is_, inputs, (before.pods, before.endpoints, before.nodes, self._ipcache))
        ):
            self._update_addresses(snapshot, node, ipcache)
        self._name_policies(snapshot, names)
        self._services.update(snapshot.services, names.services)
        return NameTable(
            addresses=self._addresses,
            past=self._table.past,
            identities=self._identities,
            endpoints=self._endpoints,
            netns_cookies=self._netns_cookies,
            services=self._services.numbers,
            frontends=self._services.frontends,
            service_addresses=self._services.addresses,
            rules=self._rules,
            isolated_by=self._isolated_by,
        )

    def _update_addresses(self, snapshot: Snapshot, node: LocalNode, ipcache: Mapping[LpmKey, U32]) -> None:
        """Update the owner of each address. The order is that of the ipcache: an endpoint of this node wins over a
        node's address, and that over a pod's status (among several pods, netpolicy.holders decides)."""
        before = self._snapshot
        touched: set[IPAddress] = set()
        for ref in changed_keys(before.pods, snapshot.pods):
            touched.update(self._claims.change(before.pods.get(ref), snapshot.pods.get(ref)))
            self._parties.pop(ref, None)
        # A name contains the identity of the pod's first address. At first all pods are touched already.
        for key in changed_keys(self._ipcache, ipcache) if before.pods else ():
            pod = self._claims.holder(key.addr)
            touched.update(pod.ips if pod is not None else ())
        self._ipcache = ipcache
        if touched or snapshot.endpoints is not before.endpoints or snapshot.pods is not before.pods:
            touched |= self._update_endpoints(snapshot)
        if snapshot.nodes is not before.nodes or node != self._node:
            of_nodes = dict(_node_addresses(snapshot, node))
            touched.update(a for a in {*self._nodes, *of_nodes} if self._nodes.get(a) is not of_nodes.get(a))
            self._nodes = of_nodes
        endpoint_ids = {endpoint.pod: endpoint.endpoint_id for endpoint in snapshot.endpoints.values()}
        pods = {address: self._pod_at(address, endpoint_ids) for address in touched}
        self._pods = evolve(self._pods, pods)
        few, many = sorted((touched, self._nodes), key=len)
        over = {a: self._nodes[a] for a in few if a in many and a not in self._local_addresses}
        self._addresses = evolve(self._addresses, {**pods, **over})

    def _pod_at(self, address: IPAddress, endpoint_ids: Mapping[ObjectRef, int]) -> Party | None:
        local = self._local_addresses.get(address)
        if local is not None:
            return local
        pod = self._claims.holder(address)
        return self._party(pod, endpoint_ids.get(pod.ref, 0), self._number(pod.ips[0]), pod.ips) if pod else None

    def _number(self, address: IPAddress) -> int:
        found = self._ipcache.get(LpmKey.host(address))
        return found.value if found is not None else 0

    def _update_endpoints(self, snapshot: Snapshot) -> set[IPAddress]:
        """Update the names of this node's endpoints. They keep their names when the pod is deleted or finished in the
        API. Returns the addresses whose name changed."""
        local: dict[AttachmentKey, Party] = {}
        found: dict[IPAddress, Party] = {}
        for key, endpoint in sorted(snapshot.endpoints.items(), key=lambda item: precedence(item[1], snapshot.pods)):
            known = pod_of(endpoint, snapshot.pods)
            if known is not None:
                identity = self._number(endpoint.ips[0]) if endpoint.ips else 0
                party = self._party(known, endpoint.endpoint_id, identity, known.ips or endpoint.ips)
            elif endpoint.pod.name:
                party = self._local.get(key) or _party_of_record(endpoint)
            else:
                continue
            local[key] = party
            found.update(dict.fromkeys(endpoint.ips, party))
        before = self._local_addresses
        self._local, self._local_addresses = local, found
        whose = [(snapshot.endpoints[key], party) for key, party in local.items()]
        self._endpoints = {endpoint.endpoint_id: party for endpoint, party in whose}
        self._netns_cookies = {endpoint.netns_cookie: party for endpoint, party in whose if endpoint.netns_cookie}
        return {address for address in {*before, *found} if before.get(address) is not found.get(address)}

    def _name_policies(self, snapshot: Snapshot, names: Names) -> None:
        before = self._names
        numbers = changed_keys(before.identities, names.identities)
        self._identities = evolve(self._identities, {n: _identity_party(n, names.identities.get(n)) for n in numbers})
        rules = set(changed_keys(before.rules, names.rules))
        policies = {
            *changed_keys(self._snapshot.policies, snapshot.policies),
            *changed_keys(self._snapshot.cluster_policies, snapshot.cluster_policies),
        }
        # A changed policy may change what its rules match, although their numbers stay the same.
        if policies:
            rules.update(n for n, ref in names.rules.items() if (ref.namespace, ref.policy) in policies)
        self._rules = evolve(self._rules, {n: _rule_name(names.rules.get(n), snapshot) for n in rules})
        if names.isolated_by is not before.isolated_by:
            self._isolated_by = {
                (identity, int(direction)): tuple(PolicyName(p.namespace, p.name) for p in policies_)
                for identity, directions in names.isolated_by.items()
                for direction, policies_ in directions.items()
            }

    def _party(self, pod: Pod, endpoint_id: int, identity: int, ips: tuple[IPAddress, ...]) -> Party:
        known = self._parties.get(pod.ref)
        # Reuse an equal name: tables compare names by identity.
        if (
            known is not None
            and known[0] is pod
            and known[1] == endpoint_id
            and known[2].identity == identity
            and known[2].ips == ips
        ):
            return known[2]
        party = Party(
            identity,
            pod.ref.namespace,
            pod.ref.name,
            _labels(pod.ref.namespace, tuple(pod.labels.items())),
            (Workload(*pod.workload),) if pod.workload else (),
            endpoint_id,
            ips,
        )
        self._parties[pod.ref] = (pod, endpoint_id, party)
        return party


def _party_of_record(endpoint: Endpoint) -> Party:
    """The name of a pod that is not in the API (not yet, or no longer), from the endpoint's record."""
    namespace, name = endpoint.pod
    return Party(0, namespace, name, _labels(namespace, ()), (), endpoint.endpoint_id, endpoint.ips)


@lru_cache(maxsize=1 << 14)
def _labels(namespace: str, labels: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Pods with the same labels share one object."""
    found = [f"k8s:{key}={value}" for key, value in labels]
    found.append(f"k8s:{NAMESPACE_LABEL}={namespace}")
    return tuple(sorted(found))


def _identity_party(number: int, labels: LabelSet | None) -> Party | None:
    if labels is None:
        return None
    return Party(number, labels.namespace, labels=_labels(labels.namespace, labels.labels))


def _node_addresses(snapshot: Snapshot, local: LocalNode) -> Iterable[tuple[IPAddress, Party]]:
    for node in snapshot.nodes.values():
        number = Identity.HOST if node.name == local.name else Identity.REMOTE_NODE
        for address in node.addresses:
            yield address, RESERVED[number]
    for address in local.addresses:
        yield address, RESERVED[Identity.HOST]


def _rule_name(ref: RuleRef | None, snapshot: Snapshot) -> PolicyName | None:
    if ref is None:
        return None
    key = ObjectRef(*ref.owner)
    policy = snapshot.policies.get(key) if key.namespace else snapshot.cluster_policies.get(key)
    rule = _rule(policy, ref.direction, ref.index)
    place = f"{ref.direction}[{ref.index}]"
    if rule is None:
        return PolicyName(*ref.owner, place)
    # The author's name goes to terminals.
    name = "".join(char if char.isprintable() else "?" for char in rule.name)
    return PolicyName(*ref.owner, f"{place} {name}".rstrip(), _match(rule))


def _rule(policy: Policy | None, direction: PolicyDirection, index: int) -> Rule | None:
    rules = policy.rules(direction) if policy is not None else ()
    return rules[index] if index < len(rules) else None


def _match(rule: Rule) -> PolicyMatch:
    if rule.peers:
        return PolicyMatch.L3_L4 if rule.ports else PolicyMatch.L3_ONLY
    return PolicyMatch.L4_ONLY if rule.ports else PolicyMatch.ALL
