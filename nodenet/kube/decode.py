"""JSON of the Kubernetes API -> model. Lenient about what is absent, strict about what is there and wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from netpolicy import parse
from netpolicy.types import PolicyError
from nodenet import model
from nodenet.kube import schema
from nodenet.model import IPAddress, IPNetwork, ObjectRef, Protocol, ServiceType
from nodenet.store import Kind, StoredObject

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
# On the mirror of a static pod: the uid under which the kubelet, and so the CNI plugin, knows it.
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
TEMPLATE_HASH_LABEL = "pod-template-hash"

# A CronJob's Jobs carry the minute they were due at.
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")


class DecodeError(ValueError):
    """An object that cannot be used. The text names it and the field; `ref` and `version` as far as they are known."""

    def __init__(self, kind: Kind, ref: ObjectRef | None, message: str, version: str = "") -> None:
        super().__init__(f"{kind} {ref}: {message}" if ref else f"{kind} without a name: {message}")
        self.ref = ref
        self.version = version


@dataclass(frozen=True, slots=True)
class Decoded:
    """`obj` None: an object that says nothing to us (an EndpointSlice of no Service)."""

    ref: ObjectRef
    version: str
    obj: StoredObject | None


class _FieldError(ValueError):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")


def decode(kind: Kind, raw: bytes | msgspec.Raw) -> Decoded:
    """One object. Raises DecodeError."""
    try:
        parsed = _DECODERS[kind].decode(raw)
        metadata: schema.ObjectName = _metadata(kind, raw) if isinstance(parsed, dict) else parsed.metadata
    except msgspec.DecodeError as error:
        raise _unreadable(kind, raw, str(error)) from error
    ref = _ref(kind, metadata)
    if ref is None:
        raise DecodeError(kind, None, "metadata.name: required")
    version = metadata.resource_version or ""
    try:
        return Decoded(ref, version, _BUILDERS[kind](ref, parsed))
    except _FieldError as error:
        raise DecodeError(kind, ref, str(error), version) from error
    except PolicyError as error:
        raise DecodeError(kind, ref, f"{error.field}: {error.message}", version) from error


def name_of(kind: Kind, raw: bytes | msgspec.Raw) -> tuple[ObjectRef, str]:
    """Name and resourceVersion, for objects of which nothing else matters. Raises DecodeError."""
    metadata = _metadata(kind, raw)
    ref = _ref(kind, metadata)
    if ref is None:
        raise DecodeError(kind, None, "metadata.name: required")
    return ref, metadata.resource_version or ""


def _metadata(kind: Kind, raw: bytes | msgspec.Raw) -> schema.ObjectName:
    try:
        return _NAMED.decode(raw).metadata
    except msgspec.DecodeError as error:
        raise DecodeError(kind, None, str(error)) from error


def _unreadable(kind: Kind, raw: bytes | msgspec.Raw, message: str) -> DecodeError:
    try:
        ref, version = name_of(kind, raw)
    except DecodeError:
        return DecodeError(kind, None, message)
    return DecodeError(kind, ref, message, version)


def _ref(kind: Kind, metadata: schema.ObjectName) -> ObjectRef | None:
    if not metadata.name:
        return None
    scoped = kind not in (Kind.NAMESPACE, Kind.NODE)
    return ObjectRef((metadata.namespace or "default") if scoped else "", metadata.name)


@lru_cache(maxsize=1 << 16)
def _parse_ip(text: str) -> IPAddress:
    return ip_address(text)


def _ip(path: str, text: str) -> IPAddress:
    try:
        return _parse_ip(text)
    except ValueError:
        raise _FieldError(path, f"expected an IP address, got {text!r}") from None


def _network(path: str, text: str) -> IPNetwork:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise _FieldError(path, f"expected a network in CIDR form, got {text!r}") from None


def _protocol(path: str, text: str | None) -> Protocol:
    name = text or "TCP"
    if name not in ("TCP", "UDP", "SCTP"):
        raise _FieldError(path, f"expected TCP, UDP or SCTP, got {name!r}")
    return Protocol[name]


def _port(path: str, number: int) -> int:
    if not 1 <= number <= 65535:
        raise _FieldError(path, f"expected 1-65535, got {number}")
    return number


def _pod(ref: ObjectRef, pod: schema.Pod) -> model.Pod:
    spec = pod.spec or schema.PodSpec()
    status = pod.status or schema.PodStatus()
    texts = [entry.ip for entry in status.pod_ips or () if entry.ip] or ([status.pod_ip] if status.pod_ip else [])
    annotations = pod.metadata.annotations or {}
    return model.Pod(
        ref=ref,
        uid=annotations.get(MIRROR_ANNOTATION) or pod.metadata.uid or "",
        labels=pod.metadata.labels or {},
        node_name=spec.node_name or "",
        ips=tuple(_ip(f"status.podIPs[{index}].ip", text) for index, text in enumerate(texts)),
        host_network=bool(spec.host_network),
        phase=status.phase or "Pending",
        named_ports=tuple(_named_ports(spec)),
        workload=_workload(pod.metadata),
    )


def _named_ports(spec: schema.PodSpec) -> Iterable[model.NamedPort]:
    """Ports that have a name: of the containers, and of the init containers that go on running (KEP-753)."""
    groups = [("containers", index, container) for index, container in enumerate(spec.containers or ())]
    groups += [
        ("initContainers", index, container)
        for index, container in enumerate(spec.init_containers or ())
        if container.restart_policy == "Always"
    ]
    for field, index, container in groups:
        for number, port in enumerate(container.ports or ()):
            if port.name:
                path = f"spec.{field}[{index}].ports[{number}]"
                protocol = _protocol(f"{path}.protocol", port.protocol)
                yield model.NamedPort(port.name, _port(f"{path}.containerPort", port.container_port), protocol)


def _workload(metadata: schema.Metadata) -> tuple[str, str] | None:
    """The controller, or what stands behind it where its name tells: a Deployment or a CronJob."""
    owner = next((o for o in metadata.owner_references or () if o.controller and o.kind and o.name), None)
    if owner is None:
        return None
    kind, name = owner.kind or "", owner.name or ""
    suffix = f"-{(metadata.labels or {}).get(TEMPLATE_HASH_LABEL, '')}"
    if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
        return "Deployment", name.removesuffix(suffix)
    cron = _CRON_JOB.fullmatch(name) if kind == "Job" else None
    return ("CronJob", cron[1]) if cron else (kind, name)


def _namespace(ref: ObjectRef, namespace: schema.Namespace) -> model.Namespace:
    return model.Namespace(ref.name, namespace.metadata.labels or {})


def _node(ref: ObjectRef, node: schema.Node) -> model.Node:
    spec = node.spec or schema.NodeSpec()
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    addresses = (node.status.addresses if node.status else None) or []
    return model.Node(
        ref.name,
        tuple(
            _ip(f"status.addresses[{index}].address", entry.address)
            for index, entry in enumerate(addresses)
            if entry.type == "InternalIP" and entry.address
        ),
        tuple(_network(f"spec.podCIDRs[{index}]", text) for index, text in enumerate(cidrs)),
        node.metadata.labels or {},
    )


def _service(ref: ObjectRef, service: schema.Service) -> model.Service:
    spec = service.spec or schema.ServiceSpec()
    try:
        kind = ServiceType(spec.type or "ClusterIP")
    except ValueError:
        raise _FieldError("spec.type", f"expected one of {', '.join(ServiceType)}, got {spec.type!r}") from None
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if kind is ServiceType.EXTERNAL_NAME or "None" in texts:
        texts = []
    return model.Service(
        ref,
        kind,
        tuple(_ip(f"spec.clusterIPs[{index}]", text) for index, text in enumerate(texts) if text),
        _ports("spec.ports", spec.ports),
        service.metadata.labels or {},
        bool(spec.publish_not_ready_addresses),
    )


def _ports(path: str, ports: list[schema.Port] | None) -> tuple[model.ServicePort, ...]:
    """A port without a number ("all ports" of an EndpointSlice) is left out: it joins nothing."""
    return tuple(
        model.ServicePort(
            port.name or "",
            _protocol(f"{path}[{index}].protocol", port.protocol),
            _port(f"{path}[{index}].port", port.port),
        )
        for index, port in enumerate(ports or ())
        if port.port is not None
    )


def _slice(ref: ObjectRef, slice_: schema.EndpointSlice) -> model.EndpointSlice | None:
    name = (slice_.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    if not name:
        return None
    # Names (addressType FQDN) are no addresses: nothing to forward to.
    endpoints = [] if slice_.address_type == "FQDN" else slice_.endpoints or []
    return model.EndpointSlice(
        ref,
        ObjectRef(ref.namespace, name),
        _ports("ports", slice_.ports),
        tuple(_endpoint(ref, index, endpoint) for index, endpoint in enumerate(endpoints)),
    )


def _endpoint(ref: ObjectRef, index: int, endpoint: schema.SliceEndpoint) -> model.SliceEndpoint:
    """Conditions that are absent: ready counts as true, serving as ready says, terminating as false (KEP-1672)."""
    conditions = endpoint.conditions or schema.Conditions()
    ready = conditions.ready is not False
    target = endpoint.target_ref
    path = f"endpoints[{index}].addresses"
    return model.SliceEndpoint(
        tuple(_ip(f"{path}[{number}]", text) for number, text in enumerate(endpoint.addresses or ())),
        ready,
        ready if conditions.serving is None else conditions.serving,
        bool(conditions.terminating),
        endpoint.node_name or "",
        ObjectRef(target.namespace or ref.namespace, target.name)
        if target and target.name and target.kind == "Pod"
        else None,
    )


def _policy(ref: ObjectRef, obj: Any) -> StoredObject:
    """Items of a list come without kind and apiVersion."""
    return parse.network_policy({"apiVersion": parse.API_VERSION, "kind": "NetworkPolicy", **obj}, strict=False)


_NAMED = msgspec.json.Decoder(schema.Named)
# Not strict: a number in quotes is still a number.
_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    Kind.POD: msgspec.json.Decoder(schema.Pod, strict=False),
    Kind.NAMESPACE: msgspec.json.Decoder(schema.Namespace, strict=False),
    Kind.NODE: msgspec.json.Decoder(schema.Node, strict=False),
    Kind.SERVICE: msgspec.json.Decoder(schema.Service, strict=False),
    Kind.ENDPOINT_SLICE: msgspec.json.Decoder(schema.EndpointSlice, strict=False),
    Kind.NETWORK_POLICY: msgspec.json.Decoder(dict[str, Any]),
}
_BUILDERS: dict[Kind, Callable[[ObjectRef, Any], StoredObject | None]] = {
    Kind.POD: _pod,
    Kind.NAMESPACE: _namespace,
    Kind.NODE: _node,
    Kind.SERVICE: _service,
    Kind.ENDPOINT_SLICE: _slice,
    Kind.NETWORK_POLICY: _policy,
}
