"""Counts the Service ports whose traffic policy is Local while only other nodes have endpoints. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from nodenet.compile.backends import Here, candidates_of, choose
from nodenet.compile.services import has_frontends
from nodenet.model import EndpointSlice, ObjectRef, Service

INTERNAL, EXTERNAL = "internal", "external"


def no_local_endpoints(
    services: Mapping[ObjectRef, Service], slices: Iterable[EndpointSlice], node: str
) -> Counter[tuple[int, str]]:
    """By IP version, and by the policy that is Local. Most Services have none: only they are looked at."""
    wanted = {ref: (service, policies) for ref, service in services.items() if (policies := tuple(_local(service)))}
    slices_of: dict[ObjectRef, list[EndpointSlice]] = {}
    for one in slices if wanted else ():
        if one.service in wanted:
            slices_of.setdefault(one.service, []).append(one)
    found: Counter[tuple[int, str]] = Counter()
    for ref, (service, policies) in wanted.items():
        ports = candidates_of(slices_of.get(ref, ()), service.publish_not_ready_addresses)
        for version in {address.version for address in service.cluster_ips}:
            for port in service.ports:
                candidates = ports.get((port.name, port.protocol), {})
                if choose(candidates, version, Here(node), local=True).only_elsewhere:
                    found.update((version, policy) for policy in policies)
    return found


def _local(service: Service) -> Iterator[str]:
    """The policies of a Service that are Local and have traffic."""
    if not has_frontends(service):
        return
    if service.internal_local:
        yield INTERNAL
    if service.external_local and _has_external_address(service):
        yield EXTERNAL


def _has_external_address(service: Service) -> bool:
    return bool(service.external_ips or service.load_balancer_ips or any(port.node_port for port in service.ports))
