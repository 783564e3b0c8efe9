"""Compiles nn_endpoint from this node's endpoints and their pods.

Fail closed: an endpoint whose pod is not in the API (the watch is behind, or the pod is deleted) keeps its attachment,
but has identity 0, which no policy entry uses, and is isolated in both directions. It can reach only its own node until
its labels, and therefore its policies, are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nodenet.abi import AddressKey, EndpointEntry, EndpointFlag
from nodenet.compile.state import Table
from nodenet.endpoint import AttachmentKey
from nodenet.model import Endpoint, Identity, IPAddress, ObjectRef, Pod

ISOLATED = EndpointFlag.ISOLATED_INGRESS | EndpointFlag.ISOLATED_EGRESS


@dataclass(frozen=True, slots=True)
class EndpointTables:
    """nn_endpoint; the identity of each local address (0: unknown); and the endpoints without an identity."""

    endpoints: Table
    identities: Mapping[IPAddress, int]
    unknown: frozenset[AttachmentKey]


def pod_of(endpoint: Endpoint, pods: Mapping[ObjectRef, Pod]) -> Pod | None:
    """The pod of an endpoint. None if it is not in the API, or if the API has another pod of the same name.

    A recreated pod of a StatefulSet has the same name: the UID distinguishes the two, if the runtime passed one.
    """
    pod = pods.get(endpoint.pod)
    # A pod of the host network has no veth: an endpoint of its name belongs to an earlier pod.
    if pod is None or pod.host_network:
        return None
    return pod if not endpoint.pod_uid or endpoint.pod_uid == pod.uid else None


def local_pods(endpoints: Mapping[AttachmentKey, Endpoint], pods: Mapping[ObjectRef, Pod]) -> tuple[ObjectRef, ...]:
    """The pods that have an endpoint on this node, sorted: the subjects of its policy."""
    return tuple(sorted({e.pod for e in endpoints.values() if pod_of(e, pods) is not None}))


def compile_endpoints(
    endpoints: Mapping[AttachmentKey, Endpoint],
    pods: Mapping[ObjectRef, Pod],
    identities: Mapping[ObjectRef, int],
    flags: Mapping[int, EndpointFlag],
    enforce: bool = True,
) -> EndpointTables:
    """One entry per address. `identities` and `flags` come from the policy compiler. `enforce` False: no endpoint is
    isolated.

    If two endpoints have the same address, one with a known pod wins, then the newer one: the runtime created it
    because the older one's address was free.
    """
    table: dict[AddressKey, EndpointEntry] = {}
    found: dict[IPAddress, int] = {}
    unknown = set()
    for key, endpoint in sorted(endpoints.items(), key=lambda item: precedence(item[1], pods)):
        pod = pod_of(endpoint, pods)
        identity = identities.get(pod.ref, Identity.UNKNOWN) if pod else Identity.UNKNOWN
        if not identity:
            unknown.add(key)
        # Without an identity or flags the policies of the pod are unknown: isolate it.
        flag = (flags.get(identity, ISOLATED) if identity else ISOLATED) if enforce else EndpointFlag(0)
        if endpoint.bridged:
            flag |= EndpointFlag.NO_REDIRECT
        for ip in endpoint.ips:
            found[ip] = int(identity)
            table[AddressKey(ip)] = EndpointEntry(
                endpoint.host_ifindex, int(identity), endpoint.endpoint_id, int(flag), endpoint.mac, _netns(endpoint)
            )
    return EndpointTables(dict(sorted(table.items(), key=_order)), found, frozenset(unknown))


def _netns(endpoint: Endpoint) -> int:
    """nn_endpoint_entry.netns: 0 if the number is unknown or does not fit into 16 bits, else the number + 1."""
    number = endpoint.netns_id
    return 0 if number is None or number >= 0xFFFF else number + 1


def precedence(endpoint: Endpoint, pods: Mapping[ObjectRef, Pod]) -> tuple[bool, int, str, str]:
    """Sort key of endpoints with the same address: the last one wins. Interface indexes increase, so the larger one is
    newer."""
    return pod_of(endpoint, pods) is not None, endpoint.host_ifindex, endpoint.container_id, endpoint.ifname


def _order(item: tuple[AddressKey, EndpointEntry]) -> tuple[int, int]:
    addr = item[0].addr
    return addr.version, int(addr)
