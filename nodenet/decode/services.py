"""Services and EndpointSlices: wire structs (schema.py) -> model. Pure.

An invalid element is left out and added to `unread`; the rest of the object is used. An invalid source range allows
nothing, so that an omission never allows more sources.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodenet import model
from nodenet.decode import schema, values
from nodenet.decode.salvage import Unread
from nodenet.decode.values import Unreads
from nodenet.interned import shared
from nodenet.model import IPAddress, IPNetwork, ObjectRef, ServiceType

# When the pods of a slice last changed: written by the control plane, for kube-proxy's metric of the same time.
_CHANGED = "endpoints.kubernetes.io/last-change-trigger-time"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
# Of sessionAffinityConfig.clientIP.timeoutSeconds: the API's default and maximum.
_AFFINITY_SECONDS = 10800
_MOST_AFFINITY_SECONDS = 86400


def service(ref: ObjectRef, obj: schema.Service, unread: Unreads) -> model.Service:
    spec = obj.spec or schema.ServiceSpec()
    kind = _type(spec.type, unread)
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    # clusterIP "None" means headless. Neither a headless nor an ExternalName Service has frontends.
    if kind is ServiceType.EXTERNAL_NAME or "None" in texts:
        texts = []
    return model.Service(
        ref,
        kind,
        _addresses("spec.clusterIPs", texts, unread),
        tuple(_ports("spec.ports", spec.ports, unread)),
        values.labels(obj.metadata.labels),
        bool(spec.publish_not_ready_addresses),
        _addresses("spec.externalIPs", spec.external_ips, unread),
        _load_balancer_ips(obj.status, unread),
        _source_ranges(spec.load_balancer_source_ranges, unread),
        _affinity_seconds(spec, unread),
        _choice("spec.internalTrafficPolicy", spec.internal_traffic_policy, ("Cluster", "Local"), unread) == "Local",
        _choice("spec.externalTrafficPolicy", spec.external_traffic_policy, ("Cluster", "Local"), unread) == "Local",
        _optional_port("spec.healthCheckNodePort", spec.health_check_node_port, unread),
    )


def _type(text: str | None, unread: Unreads) -> ServiceType:
    try:
        return ServiceType(text or "ClusterIP")
    except ValueError:
        message = f"expected one of {', '.join(ServiceType)}, got {text!r}: served at its cluster IPs only"
        unread.append(Unread("spec.type", message))
        return ServiceType.CLUSTER_IP


def _choice(path: str, text: str | None, choices: tuple[str, ...], unread: Unreads) -> str:
    """One of `choices`. The first one if the field is absent or invalid."""
    if not text or text in choices:
        return text or choices[0]
    unread.append(Unread(path, f"expected {' or '.join(choices)}, got {text!r}: {choices[0]} is used"))
    return choices[0]


def _addresses(path: str, texts: list[str] | None, unread: Unreads) -> tuple[IPAddress, ...]:
    found = [values.address(f"{path}[{index}]", text, unread) for index, text in enumerate(texts or ()) if text]
    return tuple(address for address in found if address is not None)


def _load_balancer_ips(status: schema.ServiceStatus | None, unread: Unreads) -> tuple[IPAddress, ...]:
    """The addresses with ipMode VIP, or without ipMode. With `Proxy` the load balancer itself handles the traffic
    (KEP-1860)."""
    ingress = (status.load_balancer.ingress if status and status.load_balancer else None) or ()
    found = []
    for index, entry in enumerate(ingress):
        path = f"status.loadBalancer.ingress[{index}]"
        mode = _choice(f"{path}.ipMode", entry.ip_mode, ("VIP", "Proxy"), unread)
        address = values.address(f"{path}.ip", entry.ip, unread) if entry.ip and mode == "VIP" else None
        if address is not None:
            found.append(address)
    return tuple(found)


def _source_ranges(texts: list[str] | None, unread: Unreads) -> tuple[IPNetwork, ...] | None:
    """None: no restriction. An invalid element stands for a range of each family that no source is in: a family
    without any range has no restriction."""
    if not texts:
        return None
    path = "spec.loadBalancerSourceRanges"
    found = [values.network(f"{path}[{index}]", text.strip(), unread) for index, text in enumerate(texts)]
    return tuple(network for one in found for network in ([one] if one is not None else model.NO_SOURCE))


def _affinity_seconds(spec: schema.ServiceSpec, unread: Unreads) -> int:
    """0: no session affinity."""
    if _choice("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP"), unread) == "None":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return _AFFINITY_SECONDS
    if not 1 <= seconds <= _MOST_AFFINITY_SECONDS:
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        message = f"expected 1-{_MOST_AFFINITY_SECONDS}, got {seconds}: {_AFFINITY_SECONDS} is used"
        unread.append(Unread(path, message))
        return _AFFINITY_SECONDS
    return seconds


def _optional_port(path: str, number: int | None, unread: Unreads) -> int:
    """0: absent or invalid."""
    return (values.port(path, number, unread) or 0) if number else 0


def _ports(path: str, ports: list[schema.Port] | None, unread: Unreads) -> Iterable[model.ServicePort]:
    """Ports without a number ("all ports" of an EndpointSlice) are left out: no Service port can refer to them."""
    for index, port in enumerate(ports or ()):
        if port.port is None:
            continue
        number = values.port(f"{path}[{index}].port", port.port, unread)
        protocol = values.protocol(f"{path}[{index}].protocol", port.protocol, unread)
        node_port = _optional_port(f"{path}[{index}].nodePort", port.node_port, unread)
        if number is not None and protocol is not None:
            yield model.ServicePort(port.name or "", protocol, number, node_port)


def endpoint_slice(ref: ObjectRef, obj: schema.EndpointSlice, unread: Unreads) -> model.EndpointSlice | None:
    labels = obj.metadata.labels or {}
    name = labels.get(SERVICE_NAME_LABEL)
    # A slice without the label belongs to no Service.
    if not name or any(label in labels for label in model.UNSERVED_LABELS):
        return None
    # Endpoints of addressType FQDN are DNS names: the datapath cannot forward to them.
    endpoints = [] if obj.address_type == "FQDN" else obj.endpoints or []
    return model.EndpointSlice(
        ref,
        ObjectRef(ref.namespace, name),
        tuple(_ports("ports", obj.ports, unread)),
        tuple(
            found
            for index, endpoint in enumerate(endpoints)
            if (found := _endpoint(ref, index, endpoint, unread)) is not None
        ),
        _changed_at(obj.metadata.annotations, unread),
    )


def _changed_at(annotations: dict[str, str] | None, unread: Unreads) -> float:
    text = annotations.get(_CHANGED) if annotations else None
    return (values.timestamp(f"metadata.annotations[{_CHANGED}]", text, unread) or 0.0) if text else 0.0


def _endpoint(
    ref: ObjectRef, index: int, endpoint: schema.SliceEndpoint, unread: Unreads
) -> model.SliceEndpoint | None:
    """Defaults of absent conditions: ready is true, serving equals ready, terminating is false (KEP-1672).

    Returns None if the first address is invalid: the API gives no meaning to further addresses.
    """
    conditions = endpoint.conditions or schema.Conditions()
    ready = conditions.ready is not False
    target = endpoint.target_ref
    path = f"endpoints[{index}].addresses"
    addresses = [
        values.address(f"{path}[{number}]", text, unread) for number, text in enumerate(endpoint.addresses or ())
    ]
    if addresses and addresses[0] is None:
        return None
    return model.SliceEndpoint(
        tuple(address for address in addresses if address is not None),
        ready,
        ready if conditions.serving is None else conditions.serving,
        bool(conditions.terminating),
        shared(endpoint.node_name or ""),
        ObjectRef(target.namespace or ref.namespace, target.name)
        if target and target.name and target.kind == "Pod"
        else None,
        _hinted(endpoint.hints.for_zones if endpoint.hints else None),
        _hinted(endpoint.hints.for_nodes if endpoint.hints else None),
    )


def _hinted(hints: list[schema.Hint] | None) -> tuple[str, ...]:
    return tuple(sorted({hint.name for hint in hints if hint.name})) if hints else ()
