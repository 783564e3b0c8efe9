"""Flows to Hubble's messages and its filters back. Messages are made only for flows that somebody asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from nodenet.abi import EventType
from nodenet.flow import decode
from nodenet.flow.filter import EventTypeMatch, FilterError, FlowFilter, InterfaceMatch, Origin
from nodenet.flow.matcher import require_filters, require_values
from nodenet.flow.types import Flow, Lost, Party, PolicyMatch, PolicyName, ServiceName, Verdict, Workload
from nodenet.model import Direction, Protocol
from nodenet.rpc.mask import Mask, prune
from nodenet.rpc.pb.flow import flow_pb2
from nodenet.rpc.pb.observer import observer_pb2

POLICY_KIND = "NetworkPolicy"
RULE_LABEL = "nodenet:rule"

_L4 = {Protocol.TCP: "TCP", Protocol.UDP: "UDP", Protocol.SCTP: "SCTP"}
_TRACE_REASONS = {0: 1, 1: 2, 2: 3, 3: 4}
_NANOSECONDS = 1_000_000_000


def response(flow: Flow, origin: Origin, mask: Mask | None = None) -> Any:
    """A GetFlowsResponse with the flow's masked fields."""
    message = observer_pb2.GetFlowsResponse(node_name=origin.node_name)
    _set_time(message.time, flow.time)
    fill(message.flow, flow, origin, mask)
    return message


def lost_response(lost: Lost, origin: Origin) -> Any:
    """A GetFlowsResponse that says how many flows are missing here."""
    message = observer_pb2.GetFlowsResponse(node_name=origin.node_name)
    fill_lost(message.lost_events, lost)
    if lost.last:
        _set_time(message.time, lost.last)
    return message


def fill_lost(message: Any, lost: Lost) -> None:
    """A flow.LostEvent."""
    message.source = int(lost.source)
    message.num_events_lost = lost.flows
    if lost.first:
        _set_time(message.first, lost.first)
    if lost.last:
        _set_time(message.last, lost.last)


def fill(message: Any, flow: Flow, origin: Origin, mask: Mask | None = None) -> None:
    """A flow.Flow. Without a mask every field that this datapath knows."""
    if mask is None:
        for put in _PUT.values():
            put(message, flow, origin)
        return
    for name in mask:
        if name in _PUT:
            _PUT[name](message, flow, origin)
    prune(message, mask)


def filters(messages: Sequence[Any], which: str) -> tuple[FlowFilter, ...]:
    """flow.FlowFilter messages as FlowFilters. Raises FilterError for what cannot be followed, and for more filters or
    values than a list may have: before they are converted."""
    require_filters(which, len(messages))
    count, found = 0, []
    for index, message in enumerate(messages):
        one, count = _filter(message, f"{which}[{index}]", count)
        found.append(one)
    return tuple(found)


def _filter(message: Any, place: str, count: int) -> tuple[FlowFilter, int]:
    """One filter, and `count` with its values added."""
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
    return sum(bit for name, bit in decode.TCP_FLAGS if getattr(value, name))


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
    if not decode.is_socket(flow.event):
        message.ethernet.source = flow.event.src_mac
        message.ethernet.destination = flow.event.dst_mac


def _put_ip(message: Any, flow: Flow, _origin: Origin) -> None:
    event = flow.event
    if not event.ip_version:
        return
    ip = message.IP
    if not event.saddr.is_unspecified or not decode.is_socket(event):
        ip.source = str(event.saddr)
    ip.destination = str(event.daddr)
    ip.ipVersion = 1 if event.ip_version == 4 else 2


def _put_l4(message: Any, flow: Flow, _origin: Origin) -> None:
    event = flow.event
    name = _L4.get(event.protocol)  # type: ignore[call-overload]
    if name is not None:
        layer = getattr(message.l4, name)
        layer.SetInParent()
        layer.source_port = event.sport
        layer.destination_port = event.dport
        if event.protocol == Protocol.TCP:
            for flag, bit in decode.TCP_FLAGS:
                if event.tcp_flags & bit:
                    setattr(layer.flags, flag, True)
    elif event.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        layer = message.l4.ICMPv6 if event.protocol == Protocol.ICMPV6 else message.l4.ICMPv4
        layer.SetInParent()
        layer.type = event.icmp_type
        layer.code = event.icmp_code


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
    message.Type = flow_pb2.SOCK if decode.is_socket(flow.event) else flow_pb2.L3_L4


def _put_node_name(message: Any, _flow: Flow, origin: Origin) -> None:
    message.node_name = origin.node_name


def _put_node_labels(message: Any, _flow: Flow, origin: Origin) -> None:
    message.node_labels.extend(origin.node_labels)


def _put_emitter(message: Any, _flow: Flow, _origin: Origin) -> None:
    message.emitter.name = "nodenet"


def _put_event_type(message: Any, flow: Flow, _origin: Origin) -> None:
    message.event_type.type, message.event_type.sub_type = decode.event_type(flow.event)


def _put_service(message: Any, service: ServiceName) -> None:
    message.namespace, message.name = service


def _put_source_service(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.source_service is not None:
        _put_service(message.source_service, flow.source_service)


def _put_destination_service(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.destination_service is not None:
        _put_service(message.destination_service, flow.destination_service)


def _put_direction(message: Any, flow: Flow, _origin: Origin) -> None:
    message.traffic_direction = decode.traffic_direction(flow.event)


def _put_match_type(message: Any, flow: Flow, _origin: Origin) -> None:
    if decode.event_type(flow.event)[0] == EventType.POLICY_VERDICT:
        message.policy_match_type = int(flow.allowed_by[0].match if flow.allowed_by else PolicyMatch.ALL)


def _put_point(message: Any, flow: Flow, _origin: Origin) -> None:
    message.trace_observation_point = decode.observation_point(flow.event)


def _put_trace_reason(message: Any, flow: Flow, _origin: Origin) -> None:
    if decode.observation_point(flow.event):
        message.trace_reason = _TRACE_REASONS.get(flow.event.ct_status, 0)


def _put_drop_reason(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.verdict is Verdict.DROPPED:
        message.drop_reason_desc = decode.drop_reason(flow.event)


def _put_is_reply(message: Any, flow: Flow, _origin: Origin) -> None:
    reply = decode.is_reply(flow.event)
    if reply is not None:
        message.is_reply.value = reply


def _put_interface(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.event.ifindex:
        message.interface.index = flow.event.ifindex


def _put_socket(message: Any, flow: Flow, _origin: Origin) -> None:
    if flow.verdict is Verdict.TRANSLATED:
        message.sock_xlate_point = decode.XLATE_POST_FORWARD


def _put_cookie(message: Any, flow: Flow, _origin: Origin) -> None:
    if not decode.is_socket(flow.event):
        message.socket_cookie = flow.event.cookie


def _put_summary(message: Any, flow: Flow, _origin: Origin) -> None:
    message.Summary = decode.summary(flow.event)


def _policies(direction: Direction, get: Callable[[Flow], tuple[PolicyName, ...]], name: str) -> Callable[..., None]:
    def put(message: Any, flow: Flow, _origin: Origin) -> None:
        found = get(flow)
        if found and decode.traffic_direction(flow.event) == direction:
            for policy in found:
                labels = [f"{RULE_LABEL}={policy.rule}"] if policy.rule else []
                getattr(message, name).add(
                    name=policy.name, namespace=policy.namespace, kind=POLICY_KIND, labels=labels
                )

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
