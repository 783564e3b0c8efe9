"""Compares the cost of a packet in this tree and another one: `python -m perf.cost --base TREE`.

There are two parts. BPF_PROG_TEST_RUN: ns for a packet of an established flow, for a SYN and for a first datagram.
Blocks of both trees alternate, so that the machine's noise affects both equally. With --vm KERNEL: instructions per
connection in a virtual machine (`nodenet bench --vm`), which repeat within 0.3 %. TREE is a checkout; it needs no
set-up.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from nodenet.errors import CannotRunError, NodenetError
from perf import trees
from perf.node import own_mounts
from perf.trees import ROOT

_WORKER = Path(__file__).parent / "cost_worker.py"
_MODES = ("ebpf", "ebpf-packet")
_WORKLOADS = ("crr", "rr", "udp")


def program_costs(base: Path, rounds: int, count: int) -> dict[str, dict[str, Any]]:
    """Like `trees.compare`, in ns per packet."""
    with own_mounts() as folder, ExitStack() as stack:
        old = trees.Worker(stack, base, _WORKER, str(folder / "bpf" / "base"))
        new = trees.Worker(stack, ROOT, _WORKER, str(folder / "bpf" / "new"))
        return trees.compare(old, new, rounds, count)


def instructions(tree: Path, kernel: str) -> dict[str, float]:
    """{"ebpf crr": thousand instructions per connection (p10), ...} of one tree, also for `direct`."""
    with _environment(tree), tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [str(tree / ".venv/bin/python"), "-m", "nodenet", "bench", "--vm", kernel, "--services", "1", "-q"]
        command += ["--modes", ",".join(("direct", *_MODES)), "--workloads", ",".join(_WORKLOADS)]
        done = subprocess.run(
            [*command, "--json", report.name], cwd=tree, capture_output=True, text=True, timeout=1800, check=False
        )
        if done.returncode != 0:
            raise CannotRunError(f"nodenet bench in {tree}: {done.stdout[-500:]}{done.stderr[-500:]}")
        rows = json.loads(Path(report.name).read_text())["results"]
    suffix = "_instructions"
    return {
        f"{row['mode']} {row['workload'].removesuffix(suffix)}": row["p10"]
        for row in rows
        if row["metric"] == "instructions"
    }


@contextlib.contextmanager
def _environment(tree: Path) -> Iterator[None]:
    """Lets the other tree use this tree's Python environment, by a temporary link. It still uses its own modules, those
    of the current folder."""
    place = tree / ".venv"
    if place.exists():
        yield
        return
    place.symlink_to(ROOT / ".venv")
    try:
        yield
    finally:
        place.unlink()


def text(found: dict[str, Any]) -> str:
    programs = found.get("programs", {})
    lines = trees.table(programs, "ns per packet (least block)") if programs else []
    counted = found.get("instructions")
    if counted:
        lines.append(f"{'thousand instructions per connection':38} {'base':>7} {'new':>7}  ratio")
        for name, value in counted["new"].items():
            other = counted["base"][name]
            lines.append(f"{name:38} {other:7.1f} {value:7.1f}  {value / other:.4f}")
    return "\n".join(lines)


@click.command()
@click.option(
    "--base", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Other tree."
)
@click.option("--rounds", default=30, show_default=True, help="Blocks of each scenario and tree.")
@click.option("--count", default=20_000, show_default=True, help="Packets of one block.")
@click.option("--vm", help="Count instructions in a virtual machine with this kernel (6.12) too.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
def cost(base: Path, rounds: int, count: int, vm: str | None, path: Path | None) -> None:
    """What a packet costs in this tree, beside another one, as ratios of one run."""
    base = base.resolve()
    found: dict[str, Any] = {}
    if vm:
        # Do this first: the other part changes the mounts of this process permanently.
        found["instructions"] = {"base": instructions(base, vm), "new": instructions(ROOT, vm)}
    found["programs"] = program_costs(base, rounds, count)
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(text(found))


def main() -> None:
    try:
        cost.main(prog_name="python -m perf.cost", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"cost: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
