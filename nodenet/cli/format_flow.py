"""Formats flows as the hubble CLI does, with explanations of drops. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf import json_format

from nodenet.cli.flow_words import TimeFormat, explanation, flow_type, hosts, identity, timestamp, verdict, via_service
from nodenet.rpc.pb.flow import flow_pb2

SEPARATOR = "------------"
HEADINGS = ("TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY")
_RESET = "\x1b[0m"
_COLORS = {
    flow_pb2.FORWARDED: "\x1b[32m",
    flow_pb2.DROPPED: "\x1b[31m",
    flow_pb2.ERROR: "\x1b[31m",
    flow_pb2.TRANSLATED: "\x1b[36m",
    flow_pb2.REDIRECTED: "\x1b[32m",
}


class Output(StrEnum):
    """Values of -o."""

    COMPACT = "compact"
    DICT = "dict"
    JSON = "json"
    JSONPB = "jsonpb"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Options:
    """Output options. `translate`: names instead of addresses; `explain`: also print which rule allowed a flow."""

    output: Output = Output.COMPACT
    time_format: TimeFormat = TimeFormat.STAMP_MILLI
    node_name: bool = False
    translate: bool = True
    color: bool = False
    explain: bool = False


class Printer:
    """Formats a stream of GetFlowsResponse messages. Call `lines` for each message, and `close` at the end (it prints
    the table)."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._first = True
        self._rows: list[list[str]] = []

    def lines(self, response: Any) -> Iterator[str]:
        """The lines for one message; none if this output format does not show it."""
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
        """The table, whose column widths are known only at the end."""
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
        for name, words in (
            ("SERVICE", via_service(flow, self._options.translate).replace("via Service ", "")),
            ("WHY", explanation(flow, self._options.explain)),
        ):
            if words:
                yield f"{name:>11}: {words}"

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
    """One line of JSON with the field names of the protocol, like hubble's -o json."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)


def compact(flow: Any, options: Options) -> str:
    """`time: src:port (ID:n) -> dst:port (ID:n) TYPE VERDICT (Summary)`, and for drops the explanation in
    parentheses."""
    source, destination = hosts(flow, options.translate)
    left = f"{source} {identity(flow.source.identity)}"
    right = f"{destination} {identity(flow.destination.identity)}"
    arrow = "<>"
    if flow.HasField("is_reply"):
        arrow = "->"
        # Show the client on the left, also for replies.
        if flow.is_reply.value:
            left, right, arrow = right, left, "<-"
    node = f" [{flow.node_name}]" if options.node_name else ""
    line = (
        f"{timestamp(flow, options.time_format)}{node}: {left} {arrow} {right} {flow_type(flow)} "
        f"{_colored_verdict(flow, options)} ({flow.Summary})"
    )
    return line + _notes(flow, options)


def _notes(flow: Any, options: Options) -> str:
    """Additional notes in parentheses, which hubble's line does not have."""
    notes = (via_service(flow, options.translate), explanation(flow, options.explain))
    return "".join(f" ({note})" for note in notes if note)


def _cells(flow: Any, options: Options) -> list[str]:
    source, destination = hosts(flow, options.translate)
    node = [flow.node_name] if options.node_name else []
    summary = str(flow.Summary)
    if options.output is Output.TABLE:
        summary += "".join(
            f" ({n})" for n in (via_service(flow, options.translate), explanation(flow, options.explain)) if n
        )
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
