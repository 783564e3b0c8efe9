"""`nodenet bpf`: builds the eBPF objects and probes the kernel's features."""

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
    help="Cache of compiled objects, keyed by a hash of sources and flags.",
)
@output_option
def build(cache_dir: Path, output: Format) -> None:
    """Compile all objects that are not in the cache, in two variants: for all kernels, and for Linux 6.2 and newer."""
    from nodenet.bpf.build import build_every_variant

    rows = [
        {"program": name, "castCtx": cast_ctx, "object": str(path)}
        for cast_ctx, objects in build_every_variant(cache_dir).items()
        for name, path in objects.items()
    ]
    columns = [Column("PROGRAM", "program"), Column("CAST CTX", "castCtx"), Column("OBJECT", "object")]
    emit(rows, columns, output)


@bpf.command()
@output_option
def probe(output: Format) -> None:
    """List the features of this kernel. Exit code 3 if a required one is missing."""
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
