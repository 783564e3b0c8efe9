"""Recorded flows for `policy suggest` and `policy diff`: from a file, or from running agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from netpolicy.recorded import Record
from netpolicy.types import PolicyError
from nodenet import manifests
from nodenet.cli.target import Target
from nodenet.errors import BadInputError


def from_file(path: str) -> Record:
    """The flows of a file with one JSON object per line: `nodenet observe -o json`, `hubble observe -o json`, or
    Hubble's export; also gzip, and `-` for the standard input. Raises BadInputError naming line and field."""
    record = Record()
    for number, line in enumerate(manifests.text_of(path).splitlines(), 1):
        if not line.strip():
            continue
        name = f"{path} line {number}"
        try:
            obj = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{name}: not JSON: {error}", "record flows with: nodenet observe -o json") from error
        if not isinstance(obj, dict):
            raise BadInputError(f"{name}: expected a flow, got {type(obj).__name__}")
        _add(record, obj, name)
    _warn(record)
    return record


def from_agents(where: Sequence[Target], since: Any = None) -> Record:
    """All flows that the agents have in memory, or those since a time."""
    record = Record()
    for number, obj in enumerate(_collected(where, since), 1):
        _add(record, obj, f"flow {number}")
    _warn(record)
    return record


def _add(record: Record, obj: Mapping[str, Any], name: str) -> None:
    try:
        record.add(obj, name)
    except PolicyError as error:
        raise BadInputError(str(error)) from error


def _collected(where: Sequence[Target], since: Any) -> Iterator[dict[str, Any]]:
    from nodenet.cli import streams
    from nodenet.cli.format_flow import to_json
    from nodenet.rpc.pb.observer import observer_pb2

    request = observer_pb2.GetFlowsRequest(number=(1 << 64) - 1)
    if since is not None:
        request.since.FromDatetime(since.replace(tzinfo=None))
    answers = asyncio.run(streams.collect(where, request, lambda text: click.echo(f"warning: {text}", err=True)))
    return (json.loads(to_json(answer)) for answer in answers)


def _warn(record: Record) -> None:
    if record.lost:
        text = f"warning: {record.lost} flows were lost when they were recorded: connections may be missing"
        click.echo(text, err=True)
