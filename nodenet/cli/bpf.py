"""`nodenet bpf`: build the eBPF objects, and ask the kernel what it can do."""

from __future__ import annotations

from pathlib import Path

import click

from nodenet.cli.output import Column, Format, emit, output_option


@click.group()
def bpf() -> None:
    """Build and inspect the eBPF objects."""


@bpf.command()
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/cache/nodenet"),
    show_default=True,
    help="Where objects are kept, by the content of their sources and flags.",
)
@output_option
def build(cache_dir: Path, output: Format) -> None:
    """Compile every object that the cache does not have."""
    from nodenet.bpf.build import build_all

    rows = [{"program": name, "object": str(path)} for name, path in build_all(cache_dir).items()]
    emit(rows, [Column("PROGRAM", "program"), Column("OBJECT", "object")], output)


@bpf.command()
@output_option
def probe(output: Format) -> None:
    """What this kernel offers. Exit code 3 when something that nodenet needs is missing."""
    from dataclasses import asdict

    from nodenet.agent.features import features
    from nodenet.bpf.probe import require

    found = features()
    columns = [
        Column("FEATURE", "name"),
        Column("AVAILABLE", "available"),
        Column("NEEDED", "needed"),
        Column("PURPOSE", "purpose"),
    ]
    emit([asdict(feature) for feature in found], columns, output)
    require(found)
