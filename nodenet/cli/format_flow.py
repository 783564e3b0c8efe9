"""Flows as text, line for line as the hubble CLI prints them; drops say which policies and what to look at. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from google.protobuf import json_format

from nodenet.abi import EventType
from nodenet.flow.types import RESERVED_NAMES, PolicyMatch
from nodenet.rpc.pb.flow import flow_pb2

SEPARATOR = "------------"
HEADINGS = ("TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY")
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
# Where the words of an enum's name are not the words that people know.
_REASONS = {
    "INVALID_PACKET_DROPPED": "Invalid packet",
    "CT_MAP_INSERTION_FAILED": "CT: Map insertion failed",
    "INVALID_IPV6_EXTENSION_HEADER": "Invalid IPv6 extension header",
    "UNSUPPORTED_L2_PROTOCOL": "Unsupported L2 protocol",
    "UNSUPPORTED_L3_PROTOCOL": "Unsupported L3 protocol",
    "IS_A_CLUSTERIP": "Is a ClusterIP",
    "FORBIDDEN_ICMPV6_MESSAGE": "Forbidden ICMPv6 message",
    "DROP_EP_NOT_READY": "Endpoint not ready",
}
# What a drop means here, for those who do not know the reason's name.
_MEANINGS = {
    "POLICY_DENIED": "the pod is isolated and no rule allows this",
    "INVALID_SOURCE_IP": "the pod sent from an address that is not its own",
    "SERVICE_BACKEND_NOT_FOUND": "the Service has no ready backend",
    "IS_A_CLUSTERIP": "the Service does not serve this port",
    "CT_MAP_INSERTION_FAILED": "the connection table is full: see nodenet map list",
    "DROP_EP_NOT_READY": "no pod of this node has the address",
    "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": "a fragment without the datagram's first one",
    "FORBIDDEN_ICMPV6_MESSAGE": "pods may not send router advertisements or redirects",
}
_RESET = "\x1b[0m"
_COLORS = {
    flow_pb2.FORWARDED: "\x1b[32m",
    flow_pb2.DROPPED: "\x1b[31m",
    flow_pb2.ERROR: "\x1b[31m",
    flow_pb2.TRANSLATED: "\x1b[36m",
    flow_pb2.REDIRECTED: "\x1b[32m",
}


class Output(StrEnum):
    """What -o takes."""

    COMPACT = "compact"
    DICT = "dict"
    JSON = "json"
    JSONPB = "jsonpb"
    TABLE = "table"


class TimeFormat(StrEnum):
    """What --time-format takes; all times are UTC, as hubble prints them."""

    STAMP_MILLI = "StampMilli"
    RFC3339 = "RFC3339"
    RFC3339_MILLI = "RFC3339Milli"
    RFC3339_MICRO = "RFC3339Micro"
    RFC3339_NANO = "RFC3339Nano"
    RFC1123Z = "RFC1123Z"


@dataclass(frozen=True, slots=True)
class Options:
    """How to print. `translate`: names instead of addresses; `explain`: allowed flows say by which rule, too."""

    output: Output = Output.COMPACT
    time_format: TimeFormat = TimeFormat.STAMP_MILLI
    node_name: bool = False
    translate: bool = True
    color: bool = False
    explain: bool = False


class Printer:
    """Text for one stream of GetFlowsResponse messages: `lines` for each, `close` at the end (a table comes whole)."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._first = True
        self._rows: list[list[str]] = []

    def lines(self, response: Any) -> Iterator[str]:
        """The lines for one message; none for what this output does not show."""
        output, kind = self._options.output, response.WhichOneof("response_types")
        if output in (Output.JSON, Output.JSONPB):
            yield to_json(response)
        elif kind == "lost_events":
            yield from self._lost(response)
        elif kind == "flow" and output is Output.COMPACT:
            yield compact(response.flow, self._options)
        elif kind == "flow" and output is Output.DICT:
            yield from self._dict(response.flow)
        elif kind == "flow":
            self._rows.append(_cells(response.flow, self._options))
        elif kind == "node_status":
            status = response.node_status
            yield f"NODE STATUS: {', '.join(status.node_names)} {status.message}".rstrip()
        self._first = False

    def close(self) -> Iterator[str]:
        """What was held back: the table, with columns as wide as they must be."""
        if self._options.output is not Output.TABLE or not self._rows:
            return
        headings = list(HEADINGS)
        if self._options.node_name:
            headings.insert(1, "NODE")
        rows = [headings, *self._rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
        for row in rows:
            yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def _dict(self, flow: Any) -> Iterator[str]:
        if not self._first:
            yield SEPARATOR
        names = ["TIMESTAMP", *(["NODE"] if self._options.node_name else []), *HEADINGS[1:]]
        for name, cell in zip(names, _cells(flow, self._options), strict=True):
            yield f"{name:>11}: {cell}"
        words = explanation(flow, self._options.explain)
        if words:
            yield f"{'WHY':>11}: {words}"

    def _lost(self, response: Any) -> Iterator[str]:
        lost = response.lost_events
        source = flow_pb2.LostEventSource.Name(lost.source)
        where = f"CPU({lost.cpu.value})"
        output = self._options.output
        if output is Output.COMPACT:
            node = f" [{response.node_name}]" if self._options.node_name else ""
            yield f"EVENTS LOST:{node} {source} {where} {lost.num_events_lost}"
        elif output is Output.DICT:
            if not self._first:
                yield SEPARATOR
            for name, value in (
                ("TIMESTAMP", ""),
                ("SOURCE", source),
                ("TYPE", "EVENTS LOST"),
                ("VERDICT", ""),
                ("SUMMARY", f"{where} - {lost.num_events_lost}"),
            ):
                yield f"{name:>11}: {value}".rstrip()
        else:
            node_cell = [response.node_name] if self._options.node_name else []
            self._rows.append(["", *node_cell, source, "", "EVENTS LOST", "", f"{where} - {lost.num_events_lost}"])


def to_json(message: Any) -> str:
    """One line of JSON with the field names of the protocol, as hubble's -o json."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)


def compact(flow: Any, options: Options) -> str:
    """`time: src:port (ID:n) -> dst:port (ID:n) TYPE VERDICT (Summary)`, and for drops why, in parentheses."""
    source, destination = hosts(flow, options.translate)
    left = f"{source} {_identity(flow.source.identity)}"
    right = f"{destination} {_identity(flow.destination.identity)}"
    arrow = "<>"
    if flow.HasField("is_reply"):
        arrow = "->"
        if flow.is_reply.value:
            left, right, arrow = right, left, "<-"
    node = f" [{flow.node_name}]" if options.node_name else ""
    line = (
        f"{timestamp(flow, options.time_format)}{node}: {left} {arrow} {right} {flow_type(flow)} "
        f"{_colored_verdict(flow, options)} ({flow.Summary})"
    )
    why = explanation(flow, options.explain)
    return f"{line} ({why})" if why else line


def explanation(flow: Any, allowed_too: bool = False) -> str:
    """Why a flow was dropped: the reason's name and the policies that isolate the pod, or what the reason means.

    With `allowed_too` also which rule let a connection pass. Empty where there is nothing to add.
    """
    if flow.verdict == flow_pb2.DROPPED:
        reason = _enum_name(flow_pb2.DropReason, flow.drop_reason_desc)
        for side, policies, end in (
            ("ingress", flow.ingress_denied_by, flow.destination),
            ("egress", flow.egress_denied_by, flow.source),
        ):
            if policies:
                names = ", ".join(f"{p.namespace}/{p.name}" for p in policies)
                pod = f"{end.namespace}/{end.pod_name}" if end.pod_name else "the pod"
                return f"{reason}: {side} of {pod} is isolated by {names}, and no rule allows this"
        meaning = _MEANINGS.get(reason)
        return f"{reason}: {meaning}" if meaning else reason
    if allowed_too:
        policies = [*flow.ingress_allowed_by, *flow.egress_allowed_by]
        names = ", ".join(" ".join([f"{p.namespace}/{p.name}", *_rule_of(p)]) for p in policies)
        return f"allowed by {names}" if names else ""
    return ""


def hosts(flow: Any, translate: bool) -> tuple[str, str]:
    """Source and destination as hubble names them: pod, else Service, else address; with the port."""
    if not flow.HasField("IP"):
        return (flow.ethernet.source, flow.ethernet.destination) if flow.HasField("ethernet") else ("", "")
    source_port, destination_port = _ports(flow)
    return (
        _host(flow.IP.source, source_port, flow.source, flow.source_service, translate),
        _host(flow.IP.destination, destination_port, flow.destination, flow.destination_service, translate),
    )


def flow_type(flow: Any) -> str:
    """The TYPE of the compact line."""
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
    """The VERDICT of the compact line; a policy verdict is ALLOWED or DENIED."""
    if flow.event_type.type == EventType.POLICY_VERDICT:
        if flow.verdict in (flow_pb2.FORWARDED, flow_pb2.REDIRECTED):
            return "ALLOWED"
        if flow.verdict in (flow_pb2.DROPPED, flow_pb2.ERROR):
            return "DENIED"
        if flow.verdict == flow_pb2.AUDIT:
            return "AUDITED"
    return _enum_name(flow_pb2.Verdict, flow.verdict)


def reason_text(number: int) -> str:
    """A drop reason in words: 133 is "Policy denied"."""
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


def _cells(flow: Any, options: Options) -> list[str]:
    source, destination = hosts(flow, options.translate)
    node = [flow.node_name] if options.node_name else []
    why = explanation(flow, options.explain)
    summary = f"{flow.Summary} ({why})" if why and options.output is Output.TABLE else flow.Summary
    return [
        timestamp(flow, options.time_format),
        *node,
        source,
        destination,
        flow_type(flow),
        verdict(flow) if options.output is Output.TABLE else _colored_verdict(flow, options),
        summary,
    ]


def _colored_verdict(flow: Any, options: Options) -> str:
    color = _COLORS.get(flow.verdict) if options.color else None
    return f"{color}{verdict(flow)}{_RESET}" if color else verdict(flow)


def _identity(number: int) -> str:
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
        name = f"{service.namespace}/{service.name}" if service.namespace else service.name
    if not port:
        return name
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _rule_of(policy: Any) -> list[str]:
    return [label.partition("=")[2] for label in policy.labels if label.startswith("nodenet:rule=")]


def _enum_name(enum: Any, number: int) -> str:
    try:
        return str(enum.Name(number))
    except ValueError:
        return str(number)
