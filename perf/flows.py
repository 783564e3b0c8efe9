"""Compares the agent's cost of a flow in this tree and another one: `python -m perf.flows --base TREE`.

It measures CPU per flow from the kernel's record to the ring, from the ring to Hubble's message, and for a filter, and
the bytes of a stored flow. Blocks of both trees alternate. TREE is a checkout; it needs no set-up. Without --base this
tree is compared with itself, which shows the noise.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from nodenet.errors import NodenetError
from perf import trees

_WORKER = Path(__file__).parent / "flows_worker.py"


@click.command()
@click.option("--base", default=trees.ROOT, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=12, show_default=True, help="Blocks of each scenario and tree.")
@click.option("--count", default=20_000, show_default=True, help="Flows of one block.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
def flows(base: Path, rounds: int, count: int, path: Path | None) -> None:
    """What a flow costs in this tree, beside another one, as ratios of one run."""
    with ExitStack() as stack:
        old, new = (trees.Worker(stack, tree, _WORKER) for tree in (base.resolve(), trees.ROOT))
        found = trees.compare(old, new, rounds, count)
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    click.echo("\n".join(trees.table(found, "ns of CPU per flow (least block)")))


def main() -> None:
    try:
        flows.main(prog_name="python -m perf.flows", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"flows: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
