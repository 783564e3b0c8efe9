"""Texts for the parts of a flow: those of the hubble CLI, and explanations of drops. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from nodenet.flow.types import RESERVED_NAMES, EventType, PolicyMatch
from nodenet.rpc.pb.flow import flow_pb2

POINTS = {
    0: "to-endpoint",
    1: "to-proxy",
    2: "to-host",
    3: "to-stack",
    4: "to-overlay",
    5: "from-endpoint",
    6: "from-proxy",
    7: "from-host",
    8: "from-stack",
    9: "from-overlay",
    10: "from-network",
    11: "to-network",
}
_SOCKET_POINTS = {1: "pre-xlate-fwd", 2: "post-xlate-fwd", 3: "pre-xlate-rev", 4: "post-xlate-rev"}
_MATCHES = {
    PolicyMatch.NONE: "none",
    PolicyMatch.L3_ONLY: "L3-Only",
    PolicyMatch.L3_L4: "L3-L4",
    PolicyMatch.L4_ONLY: "L4-Only",
    PolicyMatch.ALL: "all",
}
# Drop reasons whose text cannot be derived from the enum's name.
_REASONS = {
    "INVALID_PACKET_DROPPED": "Invalid packet",
    "CT_MAP_INSERTION_FAILED": "CT: Map insertion failed",
    "INVALID_IPV6_EXTENSION_HEADER": "Invalid IPv6 extension header",
    "UNSUPPORTED_L2_PROTOCOL": "Unsupported L2 protocol",
    "UNSUPPORTED_L3_PROTOCOL": "Unsupported L3 protocol",
    "IS_A_CLUSTERIP": "Is a ClusterIP",
    "FORBIDDEN_ICMPV6_MESSAGE": "Forbidden ICMPv6 message",
    "DENIED_BY_LB_SRC_RANGE_CHECK": "Denied by LB src range check",
    "DROP_EP_NOT_READY": "Endpoint not ready",
}
# Explanations of drop reasons in this datapath.
_MEANINGS = {
    "POLICY_DENIED": "the pod is isolated and no rule allows this",
    "INVALID_SOURCE_IP": "the pod sent from an address that is not its own",
    "SERVICE_BACKEND_NOT_FOUND": "the Service has no ready backend",
    "IS_A_CLUSTERIP": "the Service does not serve this port",
    "CT_MAP_INSERTION_FAILED": "the connection table is full: see nodenet map list",
    "UNKNOWN_CONNECTION_TRACKING_STATE": "no such connection, or another one has its ends: see docs/packet-walk.md",
    "DROP_EP_NOT_READY": "no pod of this node has the address",
    "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": "a fragment without the datagram's first one",
    "DENIED_BY_LB_SRC_RANGE_CHECK": "the source is in no range of the Service's loadBalancerSourceRanges",
    "FORBIDDEN_ICMPV6_MESSAGE": "pods may not send router advertisements or redirects",
}


class TimeFormat(StrEnum):
    """Values of --time-format. All times are UTC, as in hubble."""

    STAMP_MILLI = "StampMilli"
    RFC3339 = "RFC3339"
    RFC3339_MILLI = "RFC3339Milli"
    RFC3339_MICRO = "RFC3339Micro"
    RFC3339_NANO = "RFC3339Nano"
    RFC1123Z = "RFC1123Z"


def via_service(flow: Any, translate: bool = True) -> str:
    """The Service that the client connected to, if the line shows the backend pod instead."""
    if not translate:
        return ""
    ends = ((flow.source_service, flow.source), (flow.destination_service, flow.destination))
    return ", ".join(f"via Service {_full_name(service)}" for service, end in ends if service.name and end.pod_name)


def explanation(flow: Any, allowed_too: bool = False) -> str:
    """Why a flow was dropped: the reason's name, and the policies that isolate the pod or an explanation of the reason.

    With `allowed_too`, for allowed connections the rule that allowed them. Empty if there is nothing to add.
    """
    if flow.verdict == flow_pb2.DROPPED:
        reason = _enum_name(flow_pb2.DropReason, flow.drop_reason_desc)
        for side, policies in (("ingress", flow.ingress_denied_by), ("egress", flow.egress_denied_by)):
            if policies and any(map(_rule_of, policies)):
                return f"{reason}: {side} denied by {', '.join(map(_policy, policies))}"
            if policies:
                return f"{reason}: {side} isolated by {', '.join(map(_policy, policies))}; no rule allows this"
        meaning = _MEANINGS.get(reason)
        return f"{reason}: {meaning}" if meaning else reason
    if allowed_too:
        policies = [*flow.ingress_allowed_by, *flow.egress_allowed_by]
        names = ", ".join(map(_policy, policies))
        return f"allowed by {names}" if names else ""
    return ""


def hosts(flow: Any, translate: bool) -> tuple[str, str]:
    """Source and destination as in hubble: pod, else Service, else address; with the port."""
    if not flow.HasField("IP"):
        return (flow.ethernet.source, flow.ethernet.destination) if flow.HasField("ethernet") else ("", "")
    source_port, destination_port = _ports(flow)
    return (
        _host(flow.IP.source, source_port, flow.source, flow.source_service, translate),
        _host(flow.IP.destination, destination_port, flow.destination, flow.destination_service, translate),
    )


def flow_type(flow: Any) -> str:
    """The TYPE in the compact line."""
    kind, sub_type = flow.event_type.type, flow.event_type.sub_type
    if kind == EventType.TRACE:
        return POINTS.get(sub_type, str(sub_type))
    if kind == EventType.DROP:
        return reason_text(sub_type)
    if kind == EventType.POLICY_VERDICT:
        direction = _enum_name(flow_pb2.TrafficDirection, flow.traffic_direction)
        match = _MATCHES.get(flow.policy_match_type, str(flow.policy_match_type))
        return f"policy-verdict:{match} {direction}"
    if kind == EventType.SOCK:
        return _SOCKET_POINTS.get(flow.sock_xlate_point, "trace-sock")
    return "UNKNOWN"


def verdict(flow: Any) -> str:
    """The VERDICT in the compact line. That of a policy verdict event is ALLOWED or DENIED."""
    if flow.event_type.type == EventType.POLICY_VERDICT:
        if flow.verdict in (flow_pb2.FORWARDED, flow_pb2.REDIRECTED):
            return "ALLOWED"
        if flow.verdict in (flow_pb2.DROPPED, flow_pb2.ERROR):
            return "DENIED"
        if flow.verdict == flow_pb2.AUDIT:
            return "AUDITED"
    return _enum_name(flow_pb2.Verdict, flow.verdict)


def reason_text(number: int) -> str:
    """The text of a drop reason: 133 is "Policy denied"."""
    name = _enum_name(flow_pb2.DropReason, number)
    return _REASONS.get(name) or name.replace("_", " ").capitalize()


def timestamp(flow: Any, time_format: TimeFormat) -> str:
    """The flow's time in UTC, or N/A."""
    if not flow.HasField("time"):
        return "N/A"
    when = datetime.fromtimestamp(flow.time.seconds, UTC)
    nanos = flow.time.nanos
    if time_format is TimeFormat.STAMP_MILLI:
        return f"{when:%b} {when.day:2d} {when:%H:%M:%S}.{nanos // 1_000_000:03d}"
    if time_format is TimeFormat.RFC1123Z:
        return f"{when:%a, %d %b %Y %H:%M:%S} +0000"
    fraction = {
        TimeFormat.RFC3339: "",
        TimeFormat.RFC3339_MILLI: f".{nanos // 1_000_000:03d}",
        TimeFormat.RFC3339_MICRO: f".{nanos // 1_000:06d}",
        TimeFormat.RFC3339_NANO: f".{nanos:09d}",
    }[time_format]
    return f"{when:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def identity(number: int) -> str:
    name = RESERVED_NAMES.get(number)
    return f"({name})" if name else f"(ID:{number})"


def _ports(flow: Any) -> tuple[int, int]:
    kind = flow.l4.WhichOneof("protocol")
    if kind not in ("TCP", "UDP", "SCTP"):
        return 0, 0
    layer = getattr(flow.l4, kind)
    return layer.source_port, layer.destination_port


def _host(address: str, port: int, end: Any, service: Any, translate: bool) -> str:
    name = address
    if translate and end.pod_name:
        name = f"{end.namespace}/{end.pod_name}" if end.namespace else end.pod_name
    elif translate and service.name:
        name = _full_name(service)
    if not port:
        return name
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _full_name(service: Any) -> str:
    return f"{service.namespace}/{service.name}" if service.namespace else str(service.name)


def _rule_of(policy: Any) -> list[str]:
    return [label.partition("=")[2] for label in policy.labels if label.startswith("nodenet:rule=")]


def _policy(policy: Any) -> str:
    """A policy, and the rule of it that decided."""
    name = f"{policy.namespace}/{policy.name}" if policy.namespace else f"{policy.kind} {policy.name}"
    return " ".join([name, *_rule_of(policy)])


def _enum_name(enum: Any, number: int) -> str:
    try:
        return str(enum.Name(number))
    except ValueError:
        return str(number)
