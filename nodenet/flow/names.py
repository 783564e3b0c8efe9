"""The Snapshot and the compiler's Names, turned into what flows are named by. Pure; once per change, not per event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netpolicy.holders import holders
from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import LabelSet, NetworkPolicy, RuleRef
from nodenet.compile.endpoints import pod_of, precedence
from nodenet.compile.state import LocalNode, Names, ServicePortName
from nodenet.flow.past import PastNames
from nodenet.flow.types import (
    RESERVED,
    NameTable,
    Party,
    PolicyMatch,
    PolicyName,
    ServiceName,
    Workload,
)
from nodenet.model import Endpoint, Identity, IPAddress, ObjectRef, Pod, Service
from nodenet.store import AttachmentKey, Snapshot

# Cilium's label for a pod's namespace, which hubble users filter by.
NAMESPACE_LABEL = "io.kubernetes.pod.namespace"


class NameTableBuilder:
    """Makes NameTables and remembers what it made of each pod: a change costs little more than what changed."""

    def __init__(self) -> None:
        self._parties: dict[ObjectRef, tuple[Pod, int, Party]] = {}
        self._services = _ServiceNames({}, {})
        # Of this node's endpoints, with the name that each had last.
        self._local: dict[AttachmentKey, Party] = {}
        self._past = PastNames()

    def build(
        self,
        snapshot: Snapshot,
        names: Names,
        node: LocalNode,
        netns_cookies: Mapping[int, AttachmentKey] | None = None,
        identities: Mapping[IPAddress, int] | None = None,
        *,
        now: int,
    ) -> NameTable:
        """The table for one Snapshot. `netns_cookies`: whose network namespace (SO_NETNS_COOKIE) is which endpoint's.

        `identities` are the compiled ipcache's host entries, so that a socket event's ends have their numbers too.
        `now`: nanoseconds of CLOCK_MONOTONIC.
        """
        numbers = identities or {}
        pods = self._pods(snapshot, numbers)
        past = self._past.update(pods, now)
        if not self._services.is_of(snapshot.services, names.services):
            self._services = _ServiceNames(snapshot.services, names.services)
        # As in the ipcache: an endpoint of this node over a node's address over a pod's status.
        local_addresses = {ip for endpoint in snapshot.endpoints.values() for ip in endpoint.ips}
        of_nodes = {ip: party for ip, party in _node_addresses(snapshot, node) if ip not in local_addresses}
        return NameTable(
            addresses={**pods, **of_nodes},
            past=past,
            identities={number: _identity_party(number, labels) for number, labels in names.identities.items()},
            endpoints={snapshot.endpoints[key].endpoint_id: party for key, party in self._local.items()},
            netns_cookies={c: self._local[key] for c, key in (netns_cookies or {}).items() if key in self._local},
            services=self._services.numbers,
            frontends=self._services.frontends,
            service_addresses=self._services.addresses,
            rules={number: _rule_name(ref, snapshot.policies) for number, ref in names.rules.items()},
            isolated_by={
                (identity, int(direction)): tuple(PolicyName(p.namespace, p.name) for p in policies)
                for identity, directions in names.isolated_by.items()
                for direction, policies in directions.items()
            },
        )

    def _pods(self, snapshot: Snapshot, numbers: Mapping[IPAddress, int]) -> dict[IPAddress, Party]:
        """Who has which pod address: what `holders` says, and over it this node's endpoints, whose pods keep their
        names although the API shows them no longer or as finished."""
        found: dict[IPAddress, Party] = {}
        parties: dict[ObjectRef, tuple[Pod, int, Party]] = {}
        endpoint_ids = {endpoint.pod: endpoint.endpoint_id for endpoint in snapshot.endpoints.values()}
        for address, pod in holders(snapshot.pods.values()).items():
            party = self._party(pod, endpoint_ids.get(pod.ref, 0), numbers.get(pod.ips[0], 0), pod.ips)
            parties[pod.ref] = (pod, party.endpoint_id, party)
            found[address] = party
        local: dict[AttachmentKey, Party] = {}
        for key, endpoint in sorted(snapshot.endpoints.items(), key=lambda item: precedence(item[1], snapshot.pods)):
            known = pod_of(endpoint, snapshot.pods)
            identity = numbers.get(endpoint.ips[0], 0) if endpoint.ips else 0
            if known is not None:
                party = self._party(known, endpoint.endpoint_id, identity, known.ips or endpoint.ips)
                parties[known.ref] = (known, party.endpoint_id, party)
            elif endpoint.pod.name:
                party = self._local.get(key) or _bare_party(endpoint)
            else:
                continue
            local[key] = party
            found.update(dict.fromkeys(endpoint.ips, party))
        self._parties, self._local = parties, local
        return found

    def _party(self, pod: Pod, endpoint_id: int, identity: int, ips: tuple[IPAddress, ...]) -> Party:
        known = self._parties.get(pod.ref)
        if (
            known is not None
            and known[0] is pod
            and known[1] == endpoint_id
            and known[2].identity == identity
            and known[2].ips == ips
        ):
            return known[2]
        return Party(
            identity,
            pod.ref.namespace,
            pod.ref.name,
            _labels(pod.ref.namespace, pod.labels.items()),
            (Workload(*pod.workload),) if pod.workload else (),
            endpoint_id,
            ips,
        )


def _bare_party(endpoint: Endpoint) -> Party:
    """A pod that the API has not shown yet, or no longer: its record has its name."""
    namespace, name = endpoint.pod
    return Party(0, namespace, name, _labels(namespace, ()), (), endpoint.endpoint_id, endpoint.ips)


class _ServiceNames:
    """What Services and their numbers alone decide: made once for all changes of other objects, such as their
    endpoints."""

    def __init__(self, services: Mapping[ObjectRef, Service], numbers: Mapping[int, ServicePortName]) -> None:
        self._sources = (services, numbers)
        self.numbers = {number: ServiceName(*name.ref) for number, name in numbers.items()}
        self.frontends: dict[tuple[IPAddress, int, int], ServiceName] = {}
        self.addresses: dict[IPAddress, ServiceName] = {}
        for service in services.values():
            name = ServiceName(*service.ref)
            for address in service.cluster_ips:
                self.addresses[address] = name
                self.frontends.update({(address, port.port, int(port.protocol)): name for port in service.ports})

    def is_of(self, services: Mapping[ObjectRef, Service], numbers: Mapping[int, ServicePortName]) -> bool:
        return self._sources[0] is services and self._sources[1] is numbers


def _labels(namespace: str, labels: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    found = [f"k8s:{key}={value}" for key, value in labels]
    found.append(f"k8s:{NAMESPACE_LABEL}={namespace}")
    return tuple(sorted(found))


def _identity_party(number: int, labels: LabelSet) -> Party:
    return Party(number, labels.namespace, labels=_labels(labels.namespace, labels.labels))


def _node_addresses(snapshot: Snapshot, local: LocalNode) -> Iterable[tuple[IPAddress, Party]]:
    for node in snapshot.nodes.values():
        number = Identity.HOST if node.name == local.name else Identity.REMOTE_NODE
        for address in node.addresses:
            yield address, RESERVED[number]
    for address in local.addresses:
        yield address, RESERVED[Identity.HOST]


def _rule_name(ref: RuleRef, policies: Mapping[ObjectRef, NetworkPolicy]) -> PolicyName:
    policy = policies.get(ObjectRef(ref.namespace, ref.policy))
    match = PolicyMatch.NONE if policy is None else _match(policy, ref.direction, ref.index)
    return PolicyName(ref.namespace, ref.policy, f"{ref.direction}[{ref.index}]", match)


def _match(policy: NetworkPolicy, direction: PolicyDirection, index: int) -> PolicyMatch:
    rules = policy.rules(direction)
    if index >= len(rules):
        return PolicyMatch.NONE
    rule = rules[index]
    if rule.peers:
        return PolicyMatch.L3_L4 if rule.ports else PolicyMatch.L3_ONLY
    return PolicyMatch.L4_ONLY if rule.ports else PolicyMatch.ALL
