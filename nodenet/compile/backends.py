"""Chooses the backends of a Service port for this node among its endpoints: kube-proxy's rules (CategorizeEndpoints).

Ready endpoints are used, as far as topology hints allow (KEP-2433, KEP-3015, KEP-4444). If none is ready, terminating
endpoints that still serve are used (KEP-1669). With traffic policy Local only endpoints of this node count (KEP-2086).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nodenet.model import EndpointSlice, IPAddress, Protocol, SliceEndpoint

READY = 0
TERMINATING = 1

# Address and port of an endpoint.
Target = tuple[IPAddress, int]
PortKey = tuple[str, Protocol]


@dataclass(frozen=True, slots=True)
class Here:
    """What the choice depends on beside the objects: this node's name, and its zone ("" if it has none).
    `node_ports`: the addresses on which NodePorts are served. `addresses`: the node's first address of each family."""

    node: str = ""
    zone: str = ""
    node_ports: tuple[IPAddress, ...] = ()
    addresses: tuple[IPAddress, ...] = ()


class Candidate(NamedTuple):
    """An endpoint that may be used. Lower ranks are preferred."""

    rank: int
    node: str
    zones: tuple[str, ...]
    nodes: tuple[str, ...]


Candidates = dict[Target, Candidate]


class Backends(NamedTuple):
    """`used`: the backends, sorted. `spare`: the other endpoints that serve; they get no new flow. `only_elsewhere`:
    the policy is Local, and only other nodes have endpoints."""

    used: list[Target]
    spare: list[Target]
    only_elsewhere: bool = False


def candidates_of(slices: Iterable[EndpointSlice], all_ready: bool) -> dict[PortKey, Candidates]:
    """Merge the slices of one Service. An endpoint may be in two slices while it moves between them: its better rank
    counts."""
    ports: dict[PortKey, Candidates] = {}
    for slice_ in slices:
        for endpoint in slice_.endpoints:
            rank = _rank(endpoint, all_ready)
            if rank is None:
                continue
            # The API gives no meaning to further addresses.
            address = endpoint.addresses[0]
            candidate = Candidate(rank, endpoint.node_name, endpoint.for_zones, endpoint.for_nodes)
            for port in slice_.ports:
                found = ports.setdefault((port.name, port.protocol), {})
                target = (address, port.port)
                # Hashing an address is expensive: one look-up for both questions.
                known = found.setdefault(target, candidate)
                if known is not candidate and candidate < known:
                    found[target] = candidate
    return ports


def _rank(endpoint: SliceEndpoint, all_ready: bool) -> int | None:
    """The rank of an endpoint; None if it must not be used. spec.publishNotReadyAddresses: "disregard any indications
    of ready/not-ready"."""
    if not endpoint.addresses:
        return None
    if endpoint.ready or all_ready:
        return READY
    return TERMINATING if endpoint.serving and endpoint.terminating else None


def choose(candidates: Mapping[Target, Candidate], version: int, here: Here, *, local: bool) -> Backends:
    """The backends among the candidates of one IP family. `local`: the traffic policy is Local."""
    family = [(target, one) for target, one in candidates.items() if target[0].version == version]
    if local:
        used = _best([(target, one) for target, one in family if one.node == here.node])
    else:
        used = _near(_best(family), here)
    targets = sorted([target for target, _ in used])
    if len(used) == len(family):
        return Backends(targets, [])
    chosen = set(targets)
    return Backends(targets, sorted(t for t, _ in family if t not in chosen), local and not used)


_Found = list[tuple[Target, Candidate]]


def _best(found: _Found) -> _Found:
    """Those of the best rank."""
    best = min((one.rank for _, one in found), default=READY)
    return [(target, one) for target, one in found if one.rank == best]


def _near(found: _Found, here: Here) -> _Found:
    """Those whose hints name this node, else those that name its zone, else all. A hint that one of them lacks switches
    that kind of hint off. Terminating endpoints are the last resort: their hints are ignored."""
    if not found or found[0][1].rank != READY:
        return found
    if all(one.nodes for _, one in found):
        near = [(target, one) for target, one in found if here.node in one.nodes]
        if near:
            return near
    if here.zone and all(one.zones for _, one in found):
        near = [(target, one) for target, one in found if here.zone in one.zones]
        if near:
            return near
    return found
