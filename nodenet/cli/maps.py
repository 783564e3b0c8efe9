"""`nodenet map` and `nodenet program`: what the kernel holds, in words."""

from __future__ import annotations

from collections.abc import Sequence

import click

from nodenet.cli.output import Format, output_option
from nodenet.cli.show import list_command, print_rows
from nodenet.cli.target import target_options
from nodenet.errors import NodenetError


@click.group("map")
def map_() -> None:
    """eBPF maps: entries, size, usage."""


map_.add_command(list_command("map", "list", "List the maps of the datapath."))


@map_.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="At most N entries; 0: all.")
@output_option
@target_options
def dump(name: str, limit: int, output: Format, **where: str | None) -> None:
    """Print the entries of the map NAME in words: addresses, names of pods, Services and rules, flags, ages.

    `nodenet map list` has the names; docs/maps.md says what each map is for.
    """
    print_rows("map_dump", output, limit, where, name)


@map_.command()
@click.argument("name")
@click.argument("key", nargs=-1, required=True)
@output_option
@target_options
def get(name: str, key: Sequence[str], output: Format, **where: str | None) -> None:
    """Print one entry of the map NAME, as a program finds it. Exit code 1 if there is none.

    KEY is the members of the key: `nodenet map get nn_frontend addr=10.96.0.10 port=53 protocol=UDP`. Members that
    are not given are 0. A first member needs no name: `nodenet map get nn_ipcache 10.244.1.2`. In nn_ipcache, nn_cidr
    and nn_policy the entry with the longest prefix is found.
    """
    if not print_rows("map_get", output, 0, where, name, key):
        raise NodenetError(f"map {name}: no entry {' '.join(key)}", "nodenet map dump shows all entries")


@click.group()
def program() -> None:
    """eBPF programs: where they are attached, how often they ran."""


program.add_command(
    list_command(
        "program",
        "list",
        "List the programs on pods' interfaces, uplinks and the cgroup, also foreign ones.\n\nRUNS and NS (nanoseconds "
        "for a run) are those of the program on all its hooks together. The kernel counts only after `sysctl "
        "kernel.bpf_stats_enabled=1`, which slows every program down a little.",
    )
)
