"""JSON of the Kubernetes API -> model. Lenient about what is absent, strict about what is there and wrong.

Element by element: what is wrong is left out and named (`Decoded.unread`), the rest of the object counts. Where leaving
something out could let more through, the object says so in the model: a NetworkPolicy isolates and allows less (see
netpolicy.parse), a Pod or Namespace has `labels_unread`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from netpolicy import parse
from netpolicy.addresses import parse_address, parse_network
from netpolicy.holders import Standing
from netpolicy.types import PolicyError
from netpolicy.types import Protocol as PolicyProtocol
from nodenet import model
from nodenet.kube import schema
from nodenet.kube.salvage import Unread, salvage
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
    """`obj` None: an object that says nothing to us (an EndpointSlice of no Service). `unread`: what was left out of
    it, a sentence each."""

    ref: ObjectRef
    version: str
    obj: StoredObject | None
    unread: tuple[str, ...] = ()


Unreads = list[Unread]


def decode(kind: Kind, raw: bytes | msgspec.Raw) -> Decoded:
    """One object. Raises DecodeError for what has no name or is no JSON."""
    unread: Unreads = []
    try:
        parsed, metadata = _parse(kind, raw, unread)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _unreadable(kind, raw, str(error)) from error
    ref = None if metadata is None else _ref(kind, metadata)
    if metadata is None or ref is None:
        raise DecodeError(kind, None, "; ".join(map(str, unread)) or "metadata.name: required")
    version = metadata.resource_version or ""
    try:
        obj = _BUILDERS[kind](ref, parsed, unread)
    except PolicyError as error:
        raise DecodeError(kind, ref, f"{error.field}: {error.message}", version) from error
    return Decoded(ref, version, obj, tuple(map(str, unread)))


def _parse(kind: Kind, raw: bytes | msgspec.Raw, unread: Unreads) -> tuple[Any, schema.ObjectName | None]:
    """The object as its struct (a NetworkPolicy: as a dict), and its metadata."""
    decoder = _DECODERS[kind]
    try:
        parsed = decoder.decode(raw)
    except msgspec.ValidationError:
        parsed = salvage(msgspec.json.decode(raw), decoder.type, unread)
    if isinstance(parsed, dict):
        return parsed, _metadata(kind, raw)
    return parsed, None if parsed is None else parsed.metadata


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
    except (msgspec.DecodeError, RecursionError) as error:
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
    return parse_address(text)


def _ip(path: str, text: str, unread: Unreads) -> IPAddress | None:
    try:
        return _parse_ip(text)
    except ValueError:
        unread.append(Unread(path, f"expected an IP address, got {text!r}"))
        return None


def _network(path: str, text: str, unread: Unreads) -> IPNetwork | None:
    try:
        return parse_network(text)
    except ValueError:
        unread.append(Unread(path, f"expected a network in CIDR form, got {text!r}"))
        return None


def _protocol(path: str, text: str | None, unread: Unreads) -> Protocol | None:
    name = text or "TCP"
    if name in ("TCP", "UDP", "SCTP"):
        return Protocol[name]
    unread.append(Unread(path, f"expected TCP, UDP or SCTP, got {name!r}"))
    return None


def _port(path: str, number: int, unread: Unreads) -> int | None:
    if 1 <= number <= 65535:
        return number
    unread.append(Unread(path, f"expected 1-65535, got {number}"))
    return None


def _labels_unread(unread: Unreads) -> bool:
    return any(entry.path.startswith("metadata.labels") for entry in unread)


def _pod(ref: ObjectRef, pod: schema.Pod, unread: Unreads) -> model.Pod:
    spec = pod.spec or schema.PodSpec()
    status = pod.status or schema.PodStatus()
    texts = [entry.ip for entry in status.pod_ips or () if entry.ip] or ([status.pod_ip] if status.pod_ip else [])
    ips = [_ip(f"status.podIPs[{index}].ip", text, unread) for index, text in enumerate(texts)]
    annotations = pod.metadata.annotations or {}
    return model.Pod(
        ref=ref,
        uid=annotations.get(MIRROR_ANNOTATION) or pod.metadata.uid or "",
        labels=pod.metadata.labels or {},
        node_name=spec.node_name or "",
        ips=tuple(ip for ip in ips if ip is not None),
        host_network=bool(spec.host_network),
        phase=status.phase or "Pending",
        named_ports=tuple(_named_ports(spec, unread)),
        workload=_workload(pod.metadata),
        labels_unread=_labels_unread(unread),
        standing=Standing.of(
            pod.metadata.deletion_timestamp,
            next((entry.status for entry in status.conditions or () if entry.type == "Ready"), None),
            status.start_time,
            pod.metadata.creation_timestamp,
        ),
    )


def _named_ports(spec: schema.PodSpec, unread: Unreads) -> Iterable[model.NamedPort]:
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
                found = _port(f"{path}.containerPort", port.container_port, unread)
                protocol = _protocol(f"{path}.protocol", port.protocol, unread)
                if found is not None and protocol is not None:
                    yield model.NamedPort(port.name, PolicyProtocol[protocol.name], found)


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


def _namespace(ref: ObjectRef, namespace: schema.Namespace, unread: Unreads) -> model.Namespace:
    return model.Namespace(ref.name, namespace.metadata.labels or {}, _labels_unread(unread))


def _node(ref: ObjectRef, node: schema.Node, unread: Unreads) -> model.Node:
    spec = node.spec or schema.NodeSpec()
    texts = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    cidrs = [_network(f"spec.podCIDRs[{index}]", text, unread) for index, text in enumerate(texts)]
    addresses = [
        _ip(f"status.addresses[{index}].address", entry.address, unread)
        for index, entry in enumerate((node.status.addresses if node.status else None) or ())
        if entry.type == "InternalIP" and entry.address
    ]
    return model.Node(
        ref.name,
        tuple(address for address in addresses if address is not None),
        tuple(cidr for cidr in cidrs if cidr is not None),
        node.metadata.labels or {},
    )


def _service(ref: ObjectRef, service: schema.Service, unread: Unreads) -> model.Service:
    spec = service.spec or schema.ServiceSpec()
    try:
        kind = ServiceType(spec.type or "ClusterIP")
    except ValueError:
        message = f"expected one of {', '.join(ServiceType)}, got {spec.type!r}: served at its cluster IPs alone"
        unread.append(Unread("spec.type", message))
        kind = ServiceType.CLUSTER_IP
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if kind is ServiceType.EXTERNAL_NAME or "None" in texts:
        texts = []
    addresses = [_ip(f"spec.clusterIPs[{index}]", text, unread) for index, text in enumerate(texts) if text]
    return model.Service(
        ref,
        kind,
        tuple(address for address in addresses if address is not None),
        tuple(_ports("spec.ports", spec.ports, unread)),
        service.metadata.labels or {},
        bool(spec.publish_not_ready_addresses),
    )


def _ports(path: str, ports: list[schema.Port] | None, unread: Unreads) -> Iterable[model.ServicePort]:
    """A port without a number ("all ports" of an EndpointSlice) is left out: it joins nothing."""
    for index, port in enumerate(ports or ()):
        if port.port is None:
            continue
        number = _port(f"{path}[{index}].port", port.port, unread)
        protocol = _protocol(f"{path}[{index}].protocol", port.protocol, unread)
        if number is not None and protocol is not None:
            yield model.ServicePort(port.name or "", protocol, number)


def _slice(ref: ObjectRef, slice_: schema.EndpointSlice, unread: Unreads) -> model.EndpointSlice | None:
    name = (slice_.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    if not name:
        return None
    # Names (addressType FQDN) are no addresses: nothing to forward to.
    endpoints = [] if slice_.address_type == "FQDN" else slice_.endpoints or []
    return model.EndpointSlice(
        ref,
        ObjectRef(ref.namespace, name),
        tuple(_ports("ports", slice_.ports, unread)),
        tuple(
            found
            for index, endpoint in enumerate(endpoints)
            if (found := _endpoint(ref, index, endpoint, unread)) is not None
        ),
    )


def _endpoint(
    ref: ObjectRef, index: int, endpoint: schema.SliceEndpoint, unread: Unreads
) -> model.SliceEndpoint | None:
    """Conditions that are absent: ready counts as true, serving as ready says, terminating as false (KEP-1672).

    None when the first address cannot be read: the API gives no meaning to further ones.
    """
    conditions = endpoint.conditions or schema.Conditions()
    ready = conditions.ready is not False
    target = endpoint.target_ref
    path = f"endpoints[{index}].addresses"
    addresses = [_ip(f"{path}[{number}]", text, unread) for number, text in enumerate(endpoint.addresses or ())]
    if addresses and addresses[0] is None:
        return None
    return model.SliceEndpoint(
        tuple(address for address in addresses if address is not None),
        ready,
        ready if conditions.serving is None else conditions.serving,
        bool(conditions.terminating),
        endpoint.node_name or "",
        ObjectRef(target.namespace or ref.namespace, target.name)
        if target and target.name and target.kind == "Pod"
        else None,
    )


def _policy(ref: ObjectRef, obj: Any, unread: Unreads) -> StoredObject:
    """Items of a list come without kind and apiVersion."""
    policy = parse.read({"apiVersion": parse.API_VERSION, "kind": "NetworkPolicy", **obj}).policy
    unread += [Unread(problem.field, f"{problem.message}: {problem.effect}") for problem in policy.problems]
    return policy


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
_BUILDERS: dict[Kind, Callable[[ObjectRef, Any, Unreads], StoredObject | None]] = {
    Kind.POD: _pod,
    Kind.NAMESPACE: _namespace,
    Kind.NODE: _node,
    Kind.SERVICE: _service,
    Kind.ENDPOINT_SLICE: _slice,
    Kind.NETWORK_POLICY: _policy,
}
