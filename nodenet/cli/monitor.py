"""`nodenet monitor`: prints the datapath's raw records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import click

from nodenet.abi import CtStatus, Event, EventType
from nodenet.cli.flow_words import POINTS, reason_text
from nodenet.cli.target import Target, target_options, targets
from nodenet.errors import NodenetError
from nodenet.flow import words
from nodenet.flow.types import Icmp
from nodenet.model import Direction, Protocol

_TYPE_NAMES = {
    int(EventType.DROP): "drop",
    int(EventType.TRACE): "trace",
    int(EventType.POLICY_VERDICT): "policy-verdict",
    int(EventType.SOCK): "trace-sock",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records, and how. `last`: the newest ones first; `types`: names of types, empty: all."""

    last: int
    follow: bool
    types: frozenset[str]
    output: str


def event_line(event: Event, clock_offset: int) -> str:
    """One event as text: what has a word in words, the other numbers of the record as they are. `clock_offset`: ns from
    the kernel's clock to the epoch."""
    when = datetime.fromtimestamp((event.time + clock_offset) / 1e9, UTC)
    parts = [
        f"{when:%H:%M:%S.%f} {type_name(event.type):<14}",
        f"{_end(event.saddr, event.sport)} -> {_end(event.daddr, event.dport)} {_name(Protocol, event.protocol)}",
        f"endpoint {event.endpoint_id} {_name(Direction, event.direction)} ct {_name(CtStatus, event.ct_status)}",
        f"identity {event.src_identity}->{event.dst_identity}",
        f"rule {event.rule_id} service {event.service_id} interface {event.ifindex} length {event.length}",
    ]
    if event.type == EventType.TRACE:
        parts.append(POINTS.get(event.point, f"point {event.point}") + (" reply" if event.is_reply else ""))
    if event.reason:
        parts.append(f"dropped: {reason_text(abs(event.reason))} ({abs(event.reason)})")
    icmp = Icmp(event.icmp_type, event.icmp_code)
    transport = words.transport(event.protocol, event.tcp_flags, icmp) if event.ip_version else words.NOT_IP
    return " ".join([*parts, f"({transport})"])


def event_json(event: Event, clock_offset: int, node: str = "") -> str:
    """One event as a line of JSON. `epoch` is ns since the epoch; `node` is included if it is not empty."""
    fields = {name: str(v) if name in ("saddr", "daddr") else v for name, v in event._asdict().items()}
    return json.dumps({**({"node": node} if node else {}), "epoch": event.time + clock_offset, **fields})


def type_name(number: int) -> str:
    """As in `observe --type`."""
    return _TYPE_NAMES.get(number, str(number))


def _name(enum: type[IntEnum], number: int) -> str:
    """A number's name in small letters; the number if it has none."""
    try:
        return enum(number).name.lower()
    except ValueError:
        return str(number)


def _end(address: Any, port: int) -> str:
    text = f"[{address}]" if address.version == 6 else str(address)
    return f"{text}:{port}" if port else text


@click.command()
@click.option("--last", type=click.IntRange(min=0), default=0, metavar="N", help="The newest N records first.")
@click.option("--no-follow", is_flag=True, help="Stop after the existing records.")
@click.option(
    "-t",
    "--type",
    "types",
    type=click.Choice([*_TYPE_NAMES.values()]),
    multiple=True,
    help="Only records of this type; may be given several times.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@target_options
def monitor(last: int, no_follow: bool, types: Sequence[str], output: str, **where: str | None) -> None:
    """Print raw datapath events: every member of the record, no names of pods. Ctrl-C ends it.

    With several nodes of a lab each record shows its node. Records of one node are in order; those of different nodes
    are not sorted.
    """
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(targets(where), Wanted(last, not no_follow, frozenset(types), output)))


async def _run(found: list[Target], wanted: Wanted) -> None:
    """With several agents, one that fails is reported on stderr. If all fail, the first error is raised."""
    results = await asyncio.gather(*(_one(target, wanted, len(found) > 1) for target in found), return_exceptions=True)
    failed = [(target, error) for target, error in zip(found, results, strict=True) if error is not None]
    for target, error in failed:
        if not isinstance(error, NodenetError) or len(failed) == len(found):
            raise error
        click.echo(f"nodenet: {target.node} is missing: {error}", err=True)
    if failed:
        raise SystemExit(1)


async def _one(target: Target, wanted: Wanted, several: bool) -> None:
    node = target.node if several else ""
    async for answer in _answers(target, wanted.last, wanted.follow):
        if answer.lost.num_events_lost:
            click.echo(f"EVENTS LOST: {answer.lost.num_events_lost}" + (f" on {node}" if node else ""), err=True)
        for record in answer.records:
            event = Event.unpack(record)
            if wanted.types and type_name(event.type) not in wanted.types:
                continue
            if wanted.output == "json":
                click.echo(event_json(event, answer.clock_offset, node))
            else:
                click.echo((f"{node} " if node else "") + event_line(event, answer.clock_offset))


async def _answers(target: Target, last: int, follow: bool) -> AsyncIterator[Any]:
    from nodenet.rpc.client import Client

    async with Client(target.address) as client:
        async for answer in client.monitor(last, follow):
            yield answer
