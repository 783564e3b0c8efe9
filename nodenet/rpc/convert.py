"""Converts flows into Hubble's messages, and Hubble's filters into FlowFilters. Only requested flows are converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from nodenet.flow import words
from nodenet.flow.filter import EventTypeMatch, FilterError, FlowFilter, InterfaceMatch, Origin
from nodenet.flow.matcher import require_filters, require_values
from nodenet.flow.types import Flow, Lost, Party, PolicyName, ServiceName, Workload
from nodenet.model import Direction, Protocol
from nodenet.rpc.mask import Mask, prune
from nodenet.rpc.pb.observer import observer_pb2

POLICY_KIND, CLUSTER_POLICY_KIND = "NetworkPolicy", "ClusterNetworkPolicy"
RULE_LABEL = "nodenet:rule"

_WITH_PORTS = {int(Protocol.TCP): "TCP", int(Protocol.UDP): "UDP", int(Protocol.SCTP): "SCTP"}
_ICMP = {int(Protocol.ICMP): "ICMPv4", int(Protocol.ICMPV6): "ICMPv6"}
_NANOSECONDS = 1_000_000_000


def response(flow: Flow, origin: Origin, mask: Mask | None = None) -> Any:
    """A GetFlowsResponse with the fields of the flow that are in the mask."""
    message = observer_pb2.GetFlowsResponse(node_name=origin.full_node_name)
    _set_time(message.time, flow.time)
    fill(message.flow, flow, origin, mask)
    return message


def lost_response(lost: Lost, origin: Origin) -> Any:
    """A GetFlowsResponse that reports lost flows."""
    message = observer_pb2.GetFlowsResponse(node_name=origin.full_node_name)
    fill_lost(message.lost_events, lost)
    if lost.last:
        _set_time(message.time, lost.last)
    return message


def fill_lost(message: Any, lost: Lost) -> None:
    """Fill a flow.LostEvent."""
    message.source = int(lost.source)
    message.num_events_lost = lost.flows
    if lost.first:
        _set_time(message.first, lost.first)
    if lost.last:
        _set_time(message.last, lost.last)


def fill(message: Any, flow: Flow, origin: Origin, mask: Mask | None = None) -> None:
    """Fill a flow.Flow. Without a mask all known fields are set."""
    if mask is None:
        for put in _PUT.values():
            put(message, flow, origin)
        return
    for name in mask:
        if name in _PUT:
            _PUT[name](message, flow, origin)
    prune(message, mask)


def filters(messages: Sequence[Any], which: str) -> tuple[FlowFilter, ...]:
    """Convert flow.FlowFilter messages. Raises FilterError for an unsupported field, and for too many filters or values
    (before these are converted)."""
    require_filters(which, len(messages))
    count, found = 0, []
    for index, message in enumerate(messages):
        one, count = _filter(message, f"{which}[{index}]", count)
        found.append(one)
    return tuple(found)


def _filter(message: Any, place: str, count: int) -> tuple[FlowFilter, int]:
    """Convert one filter. Also returns `count` plus the number of its values."""
    if message.experimental.cel_expression:
        raise FilterError(f"{place}.experimental.cel_expression", "CEL is not supported; use the other fields")
    values: dict[str, Any] = {}
    for spec in fields(FlowFilter):
        found = getattr(message, spec.name)
        if found:
            count += len(found)
            require_values(f"{place}.{spec.name}", count)
            values[spec.name] = tuple(_CONVERTERS.get(spec.name, _same)(value) for value in found)
    return FlowFilter(**values), count


def _same(value: Any) -> Any:
    return value


def _workload(value: Any) -> Workload:
    return Workload(value.kind, value.name)


def _flag_bits(value: Any) -> int:
    return sum(bit for name, bit in words.TCP_FLAGS if getattr(value, name))


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "source_workload": _workload,
    "destination_workload": _workload,
    "interface": lambda value: InterfaceMatch(value.index, value.name),
    "event_type": lambda value: EventTypeMatch(value.type, value.match_sub_type, value.sub_type),
    "http_header": lambda value: (value.key, value.value),
    "tcp_flags": _flag_bits,
}


def _set_time(message: Any, nanoseconds: int) -> None:
    message.seconds, message.nanos = divmod(nanoseconds, _NANOSECONDS)


def _put_time(message: Any, flow: Flow, _origin: Origin) -> None:
    _set_time(message.time, flow.time)


def _put_uuid(message: Any, flow: Flow, origin: Origin) -> None:
    message.uuid = origin.uuid(flow.number)


def _put_verdict(message: Any, flow: Flow, _origin: Origin) -> None:
    message.verdict = int(flow.verdict)


def _put_ethernet(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.source_mac is not None:
        message.ethernet.source = flow.source_mac
    if flow.destination_mac is not None:
        message.ethernet.destination = flow.destination_mac


def _put_ip(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.ip_version is None:
        return
    ip = message.IP
    if flow.source_ip is not None:
        ip.source = str(flow.source_ip)
    if flow.destination_ip is not None:
        ip.destination = str(flow.destination_ip)
    ip.ipVersion = 1 if flow.ip_version == 4 else 2


def _put_l4(message: Any, flow: Flow, _origin: Origin) -> None:
    protocol = flow.protocol
    if protocol is None:
        return
    if protocol in _WITH_PORTS:
        layer = getattr(message.l4, _WITH_PORTS[protocol])
        layer.SetInParent()
        if flow.source_port is not None:
            layer.source_port = flow.source_port
        if flow.destination_port is not None:
            layer.destination_port = flow.destination_port
        if flow.tcp_flags:
            for flag, bit in words.TCP_FLAGS:
                if flow.tcp_flags & bit:
                    setattr(layer.flags, flag, True)
    elif protocol in _ICMP:
        layer = getattr(message.l4, _ICMP[protocol])
        layer.SetInParent()
        if flow.icmp is not None:
            layer.type, layer.code = flow.icmp


def _put_party(message: Any, party: Party, cluster: str) -> None:
    message.identity = party.identity
    if party.endpoint_id:
        message.ID = party.endpoint_id
    if party.pod:
        message.cluster_name = cluster
        message.pod_name = party.pod
    if party.namespace:
        message.namespace = party.namespace
    message.labels.extend(party.labels)
    for workload in party.workloads:
        message.workloads.add(name=workload.name, kind=workload.kind)


def _put_source(message: Any, flow: Flow, origin: Origin) -> None:
    _put_party(message.source, flow.source, origin.cluster_name)


def _put_destination(message: Any, flow: Flow, origin: Origin) -> None:
    _put_party(message.destination, flow.destination, origin.cluster_name)


def _put_type(message: Any, flow: Flow, _origin: Origin) -> None:
    message.Type = int(flow.type)


def _put_node_name(message: Any, _flow: Flow, origin: Origin) -> None:
    message.node_name = origin.full_node_name


def _put_node_labels(message: Any, _flow: Flow, origin: Origin) -> None:
    message.node_labels.extend(origin.node_labels)


def _put_emitter(message: Any, _flow: Flow, _origin: Origin) -> None:
    message.emitter.name = "nodenet"


def _put_event_type(message: Any, flow: Flow, _origin: Origin) -> None:
    message.event_type.type, message.event_type.sub_type = int(flow.event_type), flow.sub_type


def _put_service(message: Any, service: ServiceName) -> None:
    message.namespace, message.name = service


def _put_source_service(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.source_service is not None:
        _put_service(message.source_service, flow.source_service)


def _put_destination_service(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.destination_service is not None:
        _put_service(message.destination_service, flow.destination_service)


def _put_direction(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.direction is not None:
        message.traffic_direction = int(flow.direction)


def _put_match_type(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.policy_match is not None:
        message.policy_match_type = int(flow.policy_match)


def _put_point(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.trace_point is not None:
        message.trace_observation_point = int(flow.trace_point)


def _put_trace_reason(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.trace_reason is not None:
        message.trace_reason = int(flow.trace_reason)


def _put_drop_reason(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.drop_reason is not None:
        message.drop_reason_desc = flow.drop_reason


def _put_is_reply(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.is_reply is not None:
        message.is_reply.value = flow.is_reply


def _put_interface(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.ifindex is not None:
        message.interface.index = flow.ifindex


def _put_socket(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.socket_point is not None:
        message.sock_xlate_point = int(flow.socket_point)


def _put_cookie(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.socket_cookie is not None:
        message.socket_cookie = flow.socket_cookie


def _put_summary(message: Any, flow: Flow, _origin: Origin) -> None:
    message.Summary = words.summary(flow)


def _policies(direction: Direction, get: Callable[[Flow], tuple[PolicyName, ...]], name: str) -> Callable[..., None]:
    def put(message: Any, flow: Flow, _origin: Origin) -> None:
        found = get(flow)
        # Hubble has separate fields for each direction.
        if found and flow.direction is direction:
            for policy in found:
                labels = [f"{RULE_LABEL}={policy.rule}"] if policy.rule else []
                kind = POLICY_KIND if policy.namespace else CLUSTER_POLICY_KIND
                getattr(message, name).add(name=policy.name, namespace=policy.namespace, kind=kind, labels=labels)

    return put


_PUT: dict[str, Callable[[Any, Flow, Origin], None]] = {
    "time": _put_time,
    "uuid": _put_uuid,
    "emitter": _put_emitter,
    "verdict": _put_verdict,
    "ethernet": _put_ethernet,
    "IP": _put_ip,
    "l4": _put_l4,
    "source": _put_source,
    "destination": _put_destination,
    "Type": _put_type,
    "node_name": _put_node_name,
    "node_labels": _put_node_labels,
    "event_type": _put_event_type,
    "source_service": _put_source_service,
    "destination_service": _put_destination_service,
    "traffic_direction": _put_direction,
    "policy_match_type": _put_match_type,
    "trace_observation_point": _put_point,
    "trace_reason": _put_trace_reason,
    "drop_reason_desc": _put_drop_reason,
    "is_reply": _put_is_reply,
    "interface": _put_interface,
    "sock_xlate_point": _put_socket,
    "socket_cookie": _put_cookie,
    "egress_allowed_by": _policies(Direction.EGRESS, lambda flow: flow.allowed_by, "egress_allowed_by"),
    "ingress_allowed_by": _policies(Direction.INGRESS, lambda flow: flow.allowed_by, "ingress_allowed_by"),
    "egress_denied_by": _policies(Direction.EGRESS, lambda flow: flow.denied_by, "egress_denied_by"),
    "ingress_denied_by": _policies(Direction.INGRESS, lambda flow: flow.denied_by, "ingress_denied_by"),
    "Summary": _put_summary,
}
