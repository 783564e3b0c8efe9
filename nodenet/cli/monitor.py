"""`nodenet monitor`: the datapath's records as they came, numbers and all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from nodenet.abi import Event, EventType
from nodenet.cli.target import Target, target_options, targets
from nodenet.errors import BadInputError
from nodenet.flow import decode


def event_line(event: Event, clock_offset: int) -> str:
    """One event with every number that the kernel gave. `clock_offset`: ns from its clock to the epoch."""
    when = datetime.fromtimestamp((event.time + clock_offset) / 1e9, UTC)
    kind = EventType(event.type).name if event.type in set(EventType) else str(event.type)
    parts = [
        f"{when:%H:%M:%S.%f} {kind:<14}",
        f"{_end(event.saddr, event.sport)} -> {_end(event.daddr, event.dport)} proto {event.protocol}",
        f"ep {event.endpoint_id} dir {event.direction} ct {event.ct_status}",
        f"id {event.src_identity}->{event.dst_identity}",
        f"rule {event.rule_id} service {event.service_id} if {event.ifindex} len {event.length}",
    ]
    if event.type == EventType.TRACE:
        parts.append(f"point {event.point} reply {event.is_reply}")
    if event.reason:
        parts.append(f"reason {decode.drop_reason(event)}")
    return " ".join([*parts, f"({decode.summary(event)})"])


def event_json(event: Event, clock_offset: int) -> str:
    """The same as one line of JSON; `epoch` is ns since the epoch."""
    fields = {name: str(v) if name in ("saddr", "daddr") else v for name, v in event._asdict().items()}
    return json.dumps({"epoch": event.time + clock_offset, **fields})


def _end(address: Any, port: int) -> str:
    text = f"[{address}]" if address.version == 6 else str(address)
    return f"{text}:{port}" if port else text


@click.command()
@click.option("--last", type=click.IntRange(min=0), default=0, metavar="N", help="The newest N records first.")
@click.option("--no-follow", is_flag=True, help="Stop after what there is.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@target_options
def monitor(last: int, no_follow: bool, output: str, **where: str | None) -> None:
    """Print raw datapath events: every number of the record, no names. Ctrl-C ends it."""
    found = targets(where)
    if len(found) > 1:
        raise BadInputError("--lab: monitor shows one node", f"add --node, one of {', '.join(t.node for t in found)}")
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(found[0], last, not no_follow, output))


async def _run(target: Target, last: int, follow: bool, output: str) -> None:
    show = event_json if output == "json" else event_line
    async for answer in _answers(target, last, follow):
        if answer.lost.num_events_lost:
            click.echo(f"EVENTS LOST: {answer.lost.num_events_lost}", err=True)
        for record in answer.records:
            click.echo(show(Event.unpack(record), answer.clock_offset))


async def _answers(target: Target, last: int, follow: bool) -> AsyncIterator[Any]:
    from nodenet.rpc.client import Client

    async with Client(target.address) as client:
        async for answer in client.monitor(last, follow):
            yield answer
