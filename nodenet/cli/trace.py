"""`nodenet trace`: traces packets outside of nodenet's programs."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime

import click


@click.group()
def trace() -> None:
    """Trace packet drops in the host's network stack."""


@trace.command()
@click.option("--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--duration", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="0: until Ctrl-C.")
@click.option(
    "--reason",
    multiple=True,
    metavar="NAME",
    help="Only this reason, for example NO_SOCKET. May be given several times.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def drops(interval: float, duration: float, reason: tuple[str, ...], output: str) -> None:
    """Count the packets that the kernel drops, by reason and kernel function.

    Policy drops of nodenet's datapath are included as drops by tc; `nodenet observe` shows more about them.
    """
    from nodenet.bpf.build import source_dir
    from nodenet.trace.drops import Drop, DropTracer

    wanted = {name.upper() for name in reason}

    def show(drop: Drop) -> None:
        if wanted and drop.reason not in wanted:
            return
        if output == "json":
            click.echo(json.dumps({"time": datetime.now(UTC).isoformat(), **drop._asdict()}))
        else:
            now = datetime.now(UTC)
            click.echo(f"{now:%H:%M:%S} {drop.packets:>7} {drop.reason:<28} {drop.function:<32} {drop.protocol}")

    with DropTracer(source_dir() / "trace") as tracer, suppress(KeyboardInterrupt):
        click.echo("tracing skb:kfree_skb; Ctrl-C ends it", err=True)
        if output == "text":
            click.echo(f"{'TIME':<8} {'PACKETS':>7} {'REASON':<28} {'FUNCTION':<32} PROTOCOL")
        end = time.monotonic() + duration if duration else None
        while end is None or time.monotonic() < end:
            time.sleep(interval if end is None else max(0.0, min(interval, end - time.monotonic())))
            for drop in tracer.take():
                show(drop)
