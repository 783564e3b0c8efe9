"""Suggests the least NetworkPolicies that allow recorded connections.

One policy for each workload that was seen, which isolates it in both directions. Its rules name the other workloads by
labels, ports by name where every pod has that name for the port, and addresses outside the cluster one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from itertools import chain, count
from typing import Any

from netpolicy.cluster import Cluster, Pod
from netpolicy.parse import network_policy
from netpolicy.recorded import End, Seen
from netpolicy.replay import Directory, replayed
from netpolicy.suggest import rules
from netpolicy.suggest.groups import Group, group
from netpolicy.suggest.rules import Other
from netpolicy.types import Direction, IPNetwork, PolicyRef

# Namespaces of the cluster itself: a record of one minute is no base for isolating them.
SYSTEM = ("kube-system", "kube-public", "kube-node-lease")


@dataclass(frozen=True, slots=True)
class Wish:
    """`namespaces`: those that get policies; empty: all but SYSTEM. `dns`: allow DNS questions although none was seen.
    `default_deny`: also isolate the workloads that were not seen. `any_outside`: one block for all addresses outside
    the cluster, in place of the recorded ones."""

    namespaces: tuple[str, ...] = ()
    dns: bool = True
    default_deny: bool = False
    any_outside: bool = False

    def covers(self, namespace: str) -> bool:
        return namespace in self.namespaces if self.namespaces else namespace not in SYSTEM


@dataclass(frozen=True, slots=True)
class Row:
    """Connections between two workloads (or addresses) to one port. `times`: how many."""

    source: str
    destination: str
    port: int
    protocol: str
    times: int

    def as_json(self) -> dict[str, Any]:
        return {
            "from": self.source,
            "to": self.destination,
            "port": self.port,
            "protocol": self.protocol,
            "times": self.times,
        }


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`policies`: manifests. `connections`: what they allow, with the numbers seen. `not_covered`: ICMP, which no rule
    can name. `unseen`: workloads of the namespaces with policies that were in no connection. `merged`: workloads that
    one policy covers because no label tells them apart. `denied`: recorded connections that the policies would deny;
    there are none unless this is a bug."""

    policies: tuple[dict[str, Any], ...]
    connections: tuple[Row, ...]
    not_covered: tuple[Row, ...]
    unseen: tuple[str, ...]
    merged: tuple[str, ...]
    denied: tuple[Seen, ...]

    @property
    def once(self) -> tuple[Row, ...]:
        return tuple(row for row in self.connections if row.times == 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "policies": list(self.policies),
            "connections": [row.as_json() for row in self.connections],
            "seenOnce": [row.as_json() for row in self.once],
            "notCovered": [row.as_json() for row in self.not_covered],
            "unseenWorkloads": list(self.unseen),
            "sharedPolicies": list(self.merged),
        }


def suggest(seen: Mapping[Seen, int], cluster: Cluster, wish: Wish | None = None) -> Suggestion:
    """Policies for recorded connections (with their numbers) of a cluster, whose pods may be partly or wholly unknown.
    Policies of the cluster have no influence."""
    wish = wish or Wish()
    directory = Directory(cluster)
    pods = _pods(seen, cluster, directory)
    by_pod = group(pods.values())
    groups = tuple(dict.fromkeys(by_pod.values()))
    pod_networks = tuple(cidr for node in cluster.nodes for cidr in node.pod_cidrs)
    model = _Model(directory, by_pod, pod_networks if wish.any_outside else None)
    traffic = rules.Traffics(wish, _dns_servers(groups), pod_networks)
    rows: Counter[tuple[str, str, int, str]] = Counter()
    uncovered: Counter[tuple[str, str, int, str]] = Counter()
    met: set[Group] = set()
    for each, times in seen.items():
        source, destination = model.other(each.source), model.other(each.destination)
        met |= {end for end in (source, destination) if isinstance(end, Group)}
        if not isinstance(source, Group) and not isinstance(destination, Group):
            continue
        key = (_shown(source), _shown(destination), each.traffic.port, str(each.traffic.protocol or "ICMP"))
        if directory.is_own_node(each) or model.is_itself(each):
            continue
        if each.traffic.protocol is None:
            uncovered[key] += times
            continue
        rows[key] += times
        traffic.add(source, destination, each.traffic)
    policies = _policies(wish, groups, met, traffic, _Names(policy.ref for policy in cluster.policies))
    covered = [each for each in groups if wish.covers(each.namespace)]
    return Suggestion(
        policies,
        _rows(rows),
        _rows(uncovered),
        tuple(sorted(str(each) for each in covered if each not in met)),
        tuple(sorted(str(each) for each in covered if len(each.workloads) > 1)),
        tuple(denied(seen, policies, cluster, directory)),
    )


def without_labels(seen: Iterable[Seen], cluster: Cluster) -> list[str]:
    """The recorded pods that the cluster does not have, and of which the record has no labels: a record can be reduced
    to some fields. No selector can be found for them."""
    directory, known = Directory(cluster), {str(pod) for pod in (*cluster.pods, *cluster.dormant)}
    pods = [directory.pod(end) for each in seen for end in (each.source, each.destination)]
    return sorted({str(pod) for pod in pods if pod is not None and not pod.labels.labels and str(pod) not in known})


def denied(
    seen: Iterable[Seen], policies: Iterable[Mapping[str, Any]], cluster: Cluster, directory: Directory
) -> list[Seen]:
    """The recorded connections that these policies, without others, would deny. ICMP is left out."""
    given = replace(cluster, policies=tuple(network_policy(policy) for policy in policies), cluster_policies=())
    named = [each for each in seen if each.traffic.protocol is not None]
    return [each for each, verdict in replayed(named, given, directory) if not verdict.allowed]


class _Model:
    """The recorded ends as groups and addresses."""

    def __init__(
        self,
        directory: Directory,
        groups: Mapping[tuple[str, str], Group],
        inside: Sequence[IPNetwork] | None,
    ) -> None:
        """`inside`: networks that are not outside, if all addresses outside are to be one end."""
        self._directory = directory
        self._groups = groups
        self._inside = inside

    def other(self, end: End) -> Other:
        pod = self._directory.pod(end)
        if pod is not None:
            return self._groups[pod.namespace, pod.name]
        address = end.address
        if self._inside is None or self._directory.is_node(end) or any(address in each for each in self._inside):
            return address
        return rules.EVERYTHING[address.version]

    def is_itself(self, seen: Seen) -> bool:
        source, destination = self._directory.pod(seen.source), self._directory.pod(seen.destination)
        return source is not None and destination is not None and str(source) == str(destination)


def _shown(other: Other) -> str:
    return f"outside ({other})" if isinstance(other, IPv4Network | IPv6Network) else str(other)


def _pods(seen: Iterable[Seen], cluster: Cluster, directory: Directory) -> dict[tuple[str, str], Pod]:
    """All pods that policy can select: those of the cluster, and those of the record."""
    known = [pod for pod in (*cluster.pods, *cluster.dormant) if not pod.host_network]
    met = [pod for each in seen for end in (each.source, each.destination) if (pod := directory.pod(end)) is not None]
    return {(pod.namespace, pod.name): pod for pod in (*met, *known)}


def _dns_servers(groups: Iterable[Group]) -> list[Group]:
    """The groups that answer DNS in kube-system, or have the label of the cluster's DNS."""
    return [
        each
        for each in groups
        if any(pod.labels.mapping.get("k8s-app") == "kube-dns" for pod in each.pods)
        or (
            each.namespace == "kube-system"
            and any(port.port == 53 and port.protocol == "UDP" for pod in each.pods for port in pod.ports)
        )
    ]


def _policies(
    wish: Wish, groups: Iterable[Group], met: Collection[Group], traffic: rules.Traffics, names: _Names
) -> tuple[dict[str, Any], ...]:
    covered = sorted((each for each in groups if wish.covers(each.namespace)), key=str)
    found = [
        rules.default_deny(namespace, names.free(namespace, "default-deny"))
        for namespace in sorted({each.namespace for each in covered})
        if wish.default_deny
    ]
    for each in covered:
        if each in met:
            name = names.free(each.namespace, each.name)
            found.append(rules.policy(each, name, {d: traffic.rules(each, d) for d in Direction}))
    return tuple(found)


class _Names:
    """Gives policies names that no policy of the cluster has: applying one must not replace that policy."""

    def __init__(self, taken: Iterable[PolicyRef]) -> None:
        self._taken = set(taken)

    def free(self, namespace: str, name: str) -> str:
        tries = chain((name,), (f"{name}-suggested{number or ''}" for number in count()))
        found = next(each for each in tries if PolicyRef(namespace, each) not in self._taken)
        self._taken.add(PolicyRef(namespace, found))
        return found


def _rows(counted: Counter[tuple[str, str, int, str]]) -> tuple[Row, ...]:
    return tuple(Row(*key, times) for key, times in sorted(counted.items()))
