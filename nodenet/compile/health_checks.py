"""Which Services have a healthCheckNodePort, and how many endpoints each of them has on this node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nodenet.compile.services import has_frontends
from nodenet.compile.state import HealthCheck
from nodenet.model import EndpointSlice, Service, ServiceType


def health_check(service: Service, slices: Iterable[EndpointSlice], node: str) -> HealthCheck | None:
    """None if the Service has none: only those of type LoadBalancer with externalTrafficPolicy Local do."""
    if not (
        service.health_check_node_port
        and service.type is ServiceType.LOAD_BALANCER
        and service.external_local
        and has_frontends(service)
    ):
        return None
    ready = {
        endpoint.addresses[0]
        for slice_ in slices
        for endpoint in slice_.endpoints
        if endpoint.ready and endpoint.addresses and endpoint.node_name == node
    }
    # A pod of two families is one endpoint.
    counts = Counter(address.version for address in ready)
    return HealthCheck(service.health_check_node_port, max(counts.values(), default=0))
