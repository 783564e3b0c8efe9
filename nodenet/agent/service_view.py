"""The answer to `nodenet service show`: one Service with its addresses, and each endpoint with the reason why this node
uses it or not.

What is used is read from the compiled maps. The reasons are those of nodenet/compile/backends.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodenet.agent.rows import address_text
from nodenet.agent.service_rows import Traffic, is_meant, services
from nodenet.compile.services import has_frontends
from nodenet.engine import Compiled
from nodenet.model import UNSERVED_LABELS, EndpointSlice, ObjectRef, Service, ServicePort, ServiceType, SliceEndpoint

Row = dict[str, Any]
_SHOWN = (
    "id",
    "port",
    "type",
    "scope",
    "frontend",
    "protocol",
    "trafficPolicy",
    "backends",
    "flows",
    "opened",
    "dropped",
)


def service_views(compiled: Compiled, traffic: Traffic, node: str, only: str = "") -> Iterator[Row]:
    """One row per Service. `node`: the name of this node. `only`: as in `is_meant`."""
    snapshot = compiled.snapshot
    addresses: dict[str, list[Row]] = {}
    for row in services(compiled, traffic, only):
        addresses.setdefault(row["service"], []).append(row)
    slices: dict[ObjectRef, list[EndpointSlice]] = {}
    for one in snapshot.slices.values():
        if is_meant(one.service, only):
            slices.setdefault(one.service, []).append(one)
    warnings: dict[ObjectRef, list[str]] = {}
    for warning in compiled.names.warnings:
        if warning.kind == "Service":
            warnings.setdefault(warning.ref, []).append(warning.message)
    for ref, service in sorted(snapshot.services.items()):
        if is_meant(ref, only):
            own = addresses.get(str(ref), [])
            yield {
                **_spec(service),
                "addresses": [{key: row[key] for key in _SHOWN} for row in own],
                "backends": list(_backends(service, slices.get(ref, ()), own, node)),
                "notServed": warnings.get(ref, []),
            }


def _spec(service: Service) -> Row:
    ranges = service.source_ranges
    return {
        "service": str(service.ref),
        "type": service.type.value,
        "noAddress": "" if has_frontends(service) else _why_none(service),
        "affinitySeconds": service.affinity_seconds,
        "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
        "externalTrafficPolicy": "Local" if service.external_local else "Cluster",
        "publishNotReadyAddresses": service.publish_not_ready_addresses,
        "sourceRanges": None if ranges is None else [str(network) for network in ranges],
        "healthCheckNodePort": service.health_check_node_port or None,
    }


def _why_none(service: Service) -> str:
    """Why a Service has no address here."""
    for label in UNSERVED_LABELS:
        if label in service.labels:
            return f"not served here: it has the label {label}"
    return "ExternalName: a name for DNS only" if service.type is ServiceType.EXTERNAL_NAME else "headless"


def _backends(service: Service, slices: Iterable[EndpointSlice], addresses: Iterable[Row], node: str) -> Iterator[Row]:
    """One row per endpoint and Service port."""
    of_port: dict[tuple[str, str], list[Row]] = {}
    for row in addresses:
        of_port.setdefault((row["port"], row["protocol"]), []).append(row)
    wanted = {(port.name, port.protocol) for port in service.ports}
    for slice_ in sorted(slices, key=lambda one: one.ref):
        for endpoint in slice_.endpoints:
            for port in slice_.ports:
                if endpoint.addresses and (port.name, port.protocol) in wanted:
                    rows = of_port.get((port.name, port.protocol.name), [])
                    yield _backend(service, endpoint, port, rows, node)


def _backend(service: Service, endpoint: SliceEndpoint, port: ServicePort, rows: Iterable[Row], node: str) -> Row:
    address = endpoint.addresses[0]
    text = address_text(address, port.port)
    of_family = [row for row in rows if ("[" in row["frontend"]) is (address.version == 6)]
    unused = {_traffic(row): _why_not(service, endpoint, row, node) for row in of_family if text not in row["backends"]}
    return {
        "port": port.name,
        "backend": text,
        "protocol": port.protocol.name,
        "pod": str(endpoint.target) if endpoint.target else "",
        "node": endpoint.node_name,
        "zones": list(endpoint.for_zones),
        "nodes": list(endpoint.for_nodes),
        "state": _state(service, endpoint),
        "usedBy": list(dict.fromkeys(_traffic(row) for row in of_family if text in row["backends"])),
        "unused": unused if of_family else {"": f"the Service has no IPv{address.version} address"},
    }


def _traffic(row: Mapping[str, Any]) -> str:
    """Which traffic a frontend serves."""
    return f"{row['type']} from outside" if row["scope"] == "external" else str(row["type"])


def _state(service: Service, endpoint: SliceEndpoint) -> str:
    if endpoint.terminating:
        return "terminating, serves" if endpoint.serving else "terminating"
    if endpoint.ready:
        return "ready"
    return "not ready, used all the same" if service.publish_not_ready_addresses else "not ready"


def _why_not(service: Service, endpoint: SliceEndpoint, row: Mapping[str, Any], node: str) -> str:
    """Why a frontend does not use an endpoint."""
    usable = endpoint.ready or service.publish_not_ready_addresses
    if not usable and not (endpoint.serving and endpoint.terminating):
        return "not ready"
    if row["trafficPolicy"] == "Local" and endpoint.node_name != node:
        return f"policy Local: it is on {endpoint.node_name or 'no known node'}"
    if not usable:
        return "it terminates, and ready ones exist"
    hints = [f"node {name}" for name in endpoint.for_nodes] + [f"zone {name}" for name in endpoint.for_zones]
    if hints:
        return f"topology: it is for {', '.join(hints)}"
    return "not in the maps: see notServed, or nodenet status"
