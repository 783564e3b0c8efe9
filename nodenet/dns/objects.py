"""What a DNS server needs of Services, EndpointSlices and Namespaces. It differs from what the datapath needs: headless
and ExternalName Services, host names of endpoints. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from nodenet import kinds
from nodenet.decode import schema, values
from nodenet.decode.schema import Struct
from nodenet.decode.values import Unreads
from nodenet.kinds import ApiKind
from nodenet.model import IPAddress, ObjectRef

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Port:
    """A named port. `protocol` is in lower case, as in SRV names."""

    name: str
    protocol: str
    number: int


@dataclass(frozen=True, slots=True)
class Service:
    """`addresses`: the cluster IPs. `external_name`: "" unless the type is ExternalName. `headless`: without cluster
    IP."""

    ref: ObjectRef
    addresses: tuple[IPAddress, ...] = ()
    external_name: str = ""
    headless: bool = False
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ready endpoint. `hostname`: "" if it has none of its own."""

    address: IPAddress
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    ref: ObjectRef
    service: ObjectRef
    ports: tuple[Port, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str


class _ServiceSpec(Struct):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_name: str | None = None
    ports: list[schema.Port] | None = None


class _Service(Struct):
    metadata: schema.Metadata
    spec: _ServiceSpec | None = None


class _Endpoint(Struct):
    addresses: list[str] | None = None
    conditions: schema.Conditions | None = None
    hostname: str | None = None


class _EndpointSlice(Struct):
    metadata: schema.Metadata
    address_type: str | None = None
    endpoints: list[_Endpoint] | None = None
    ports: list[schema.Port] | None = None


def _service(ref: ObjectRef, obj: _Service, unread: Unreads) -> Service:
    spec = obj.spec or _ServiceSpec()
    ports = _ports("spec.ports", spec.ports, unread)
    if spec.type == "ExternalName":
        return Service(ref, external_name=(spec.external_name or "").rstrip("."), ports=ports)
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if "None" in texts:
        return Service(ref, headless=True, ports=ports)
    addresses = [values.address(f"spec.clusterIPs[{index}]", text, unread) for index, text in enumerate(texts)]
    return Service(ref, tuple(address for address in addresses if address is not None), ports=ports)


def _ports(path: str, ports: list[schema.Port] | None, unread: Unreads) -> tuple[Port, ...]:
    found = []
    for index, port in enumerate(ports or ()):
        number = None if port.port is None else values.port(f"{path}[{index}].port", port.port, unread)
        if port.name and number is not None:
            found.append(Port(port.name.lower(), (port.protocol or "TCP").lower(), number))
    return tuple(found)


def _slice(ref: ObjectRef, obj: _EndpointSlice, unread: Unreads) -> EndpointSlice | None:
    name = (obj.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    if not name or obj.address_type == "FQDN":
        return None
    found = []
    for index, endpoint in enumerate(obj.endpoints or ()):
        # An absent condition means ready. publishNotReadyAddresses is in it already: the controller sets it.
        if endpoint.conditions is not None and endpoint.conditions.ready is False:
            continue
        for number, text in enumerate(endpoint.addresses or ()):
            address = values.address(f"endpoints[{index}].addresses[{number}]", text, unread)
            if address is not None:
                found.append(Endpoint(address, (endpoint.hostname or "").lower()))
    return EndpointSlice(ref, ObjectRef(ref.namespace, name), _ports("ports", obj.ports, unread), tuple(found))


def _namespace(ref: ObjectRef, _obj: Any, _unread: Unreads) -> Namespace:
    return Namespace(ref.name)


SERVICE = ApiKind(
    resource=kinds.SERVICE.resource,
    holds=Service,
    key=lambda obj: obj.ref,
    place="services",
    wire=_Service,
    build=_service,
)
ENDPOINT_SLICE = ApiKind(
    resource=kinds.ENDPOINT_SLICE.resource,
    holds=EndpointSlice,
    key=lambda obj: obj.ref,
    place="slices",
    wire=_EndpointSlice,
    build=_slice,
    selector=SERVICE_NAME_LABEL,
)
NAMESPACE = ApiKind(
    resource=kinds.NAMESPACE.resource,
    holds=Namespace,
    key=lambda obj: ObjectRef("", obj.name),
    place="namespaces",
    wire=schema.Namespace,
    build=_namespace,
)
KINDS = (SERVICE, ENDPOINT_SLICE, NAMESPACE)
