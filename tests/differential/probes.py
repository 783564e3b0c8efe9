"""What is called, from where, and what was seen."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.differential.tables import PORTS, Spec, sets

# A port that no Service and no program has.
UNSERVED = {"node": 32001, "other": 4444}
# Location -> node. Pods that call, two that are also backends, processes of the nodes, and a machine outside.
CLIENTS = {
    "c1": "node1",
    "c2": "node2",
    "b1": "node1",
    "b4": "node2",
    "host1": "node1",
    "host2": "node2",
    "outside": "",
}
HOSTS = ("host1", "host2")
OUTSIDE = "outside"
HAIRPIN = ("169.254.42.1", "100::1")


@dataclass(frozen=True)
class Probe:
    """`kind`: cluster, node1, node2, balancer, external. `served`: False for a port that the address does not have."""

    client: str
    service: Spec
    kind: str
    address: str
    port: int
    protocol: str
    family: int
    served: bool = True

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Calls with the same key share an entry of session affinity."""
        number = PORTS[self.port % 10][1] if self.kind.startswith("node") and self.served else self.port
        return self.client, self.service.name, self.protocol, number

    @property
    def at_home(self) -> bool:
        """Whether the client's node, or its own, is the first that may translate it."""
        return self.client != OUTSIDE and (not self.kind.startswith("node") or CLIENTS[self.client] == self.kind)

    def __str__(self) -> str:
        return f"{self.client} -> {self.kind} {self.address} port {self.port}/{self.protocol} of {self.service.words}"


@dataclass(frozen=True)
class Places:
    """Addresses of the lab: of pods and nodes by (name, family), all of each node, ClusterIPs by (Service, family)."""

    own: Mapping[tuple[str, int], str]
    of_node: Mapping[str, frozenset[str]]
    cluster_ips: Mapping[tuple[str, int], str]


def every(specs: Sequence[Spec], places: Places) -> Iterator[Probe]:
    shared = set[str]()
    for spec in specs:
        for family in spec.families:
            # An address that several Services have is the first one's.
            external = [ip for ip in spec.external_ips(family) if ip not in shared]
            shared.update(external)
            for client in CLIENTS:
                yield from _of_service(spec, family, client, places, external)


def _of_service(spec: Spec, family: int, client: str, places: Places, external: Sequence[str]) -> Iterator[Probe]:
    addresses = [("cluster", places.cluster_ips[spec.name, family])]
    addresses += [("balancer", spec.balancer(family))] * (spec.balanced and not spec.proxied)
    addresses += [("external", ip) for ip in external]
    for kind, address in addresses:
        for protocol, number in PORTS:
            yield Probe(client, spec, kind, address, number, protocol, family)
        yield Probe(client, spec, kind, address, UNSERVED["other"], "tcp", family, served=False)
        yield Probe(client, spec, kind, address, UNSERVED["other"], "udp", family, served=False)
    for node in ("node1", "node2"):
        for (protocol, _), number in spec.node_ports().items():
            yield Probe(client, spec, node, places.own[node, family], number, protocol, family)
        yield Probe(client, spec, node, places.own[node, family], UNSERVED["node"], "tcp", family, served=False)


def chosen(specs: Sequence[Spec], places: Places, count: int, seed: int) -> list[Probe]:
    """`count` of all probes; one in eight of a port that is not served."""
    found = list(every(specs, places))
    served, others = [p for p in found if p.served], [p for p in found if not p.served]
    draw = random.Random(seed)
    few = min(len(others), count // 8)
    return draw.sample(served, min(len(served), count - few)) + draw.sample(others, few)


@dataclass(frozen=True)
class Seen:
    """All tries of one probe. `sources`: (what the backend saw as the client, whether the backend is the client)."""

    answers: frozenset[str]
    backends: frozenset[str]
    sources: frozenset[tuple[str, bool]]

    def __str__(self) -> str:
        answers, backends = "/".join(sorted(self.answers)), "/".join(sorted(self.backends)) or "-"
        sources = "/".join(sorted(source for source, _ in self.sources)) or "-"
        return f"{answers} by {backends} as {sources}"


def seen(probe: Probe, tries: Sequence[Sequence[str]], places: Places) -> Seen:
    answered = [one for one in tries if one[0] == "answered"]
    return Seen(
        frozenset(one[0] for one in tries),
        frozenset(one[1] for one in answered),
        frozenset((_source(probe, one[2], places), one[1] == probe.client) for one in answered),
    )


def _source(probe: Probe, address: str, places: Places) -> str:
    """The client's address in words: client, node1, node2, hairpin, or the address."""
    if address in HAIRPIN:
        return "hairpin"
    for node, addresses in places.of_node.items():
        if address in addresses:
            return node
    return "client" if address == places.own[probe.client, probe.family] else address


def policies(probe: Probe, backends: frozenset[str]) -> frozenset[str]:
    """The sets of backends, of a policy on a node, that contain all of these."""
    return frozenset(
        f"{policy} on {node}"
        for node in ("node1", "node2")
        for policy, allowed in sets(probe.service, node).items()
        if backends <= allowed
    )
