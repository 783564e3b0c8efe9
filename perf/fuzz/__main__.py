"""`python -m perf.fuzz`: try frames up to a number or a time. Exit status 1 if something passed against policy."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from nodenet.bpf import build
from nodenet.errors import CannotRunError, NodenetError
from nodenet.link import netns
from perf.fuzz.cases import Maker
from perf.fuzz.datapath import Loads
from perf.fuzz.model import reached
from perf.fuzz.mutants import MUTANTS
from perf.fuzz.mutants import sources as mutated_sources
from perf.fuzz.search import BATCH, Finding, Search, Tally, steps_from, way_of
from perf.fuzz.wire import Wire
from perf.node import own_mounts

CACHE = Path("/var/cache/nodenet")
# The least share of frames that must reach an application without programs. Otherwise a run proves little.
_LEAST_REACHING = 0.1
_SHOWN = 8  # frames of a finding
_WIRE_MUTANT = 20_000
_wires = itertools.count()
_HOME = "fuzzhome"
_LOST = "allowed, and lost"


@dataclass(frozen=True, slots=True)
class Limits:
    frames: int
    seconds: float
    findings: int


@contextmanager
def surroundings() -> Iterator[Path]:
    """Move this process permanently to private namespaces with a BPF file system, which end with the process."""
    # Use only one CPU, so that frames are handled in the order in which they are sent.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with own_mounts() as folder, ExitStack() as stack:
        netns.create(_HOME)
        stack.callback(netns.delete, _HOME)
        netns.enter(_HOME)
        yield folder / "bpf"


@contextmanager
def searching(folder: Path, sources: Path | None) -> Iterator[Search]:
    """A search with the programs of one tree (None: our own) and with receivers."""
    objects = {"endpoint": build.build("endpoint", CACHE, sources)}
    with ExitStack() as stack:
        yield Search(stack, Loads(folder, objects))


def hunt(search: Search, maker: Maker, limits: Limits, until: str = "") -> list[Finding]:
    """Run batches until a limit is reached, or until the kind of a finding (`way`) ends with `until`."""
    found: list[Finding] = []
    started = shown = time.monotonic()
    while search.tally.frames < limits.frames and time.monotonic() - started < limits.seconds:
        cases = [maker.case() for _ in range(BATCH)]
        past, lost = search.batch(cases)
        known = {finding.way for finding in found}
        before = len(found)
        ways = {way_of(delivery) for delivery in past} - known
        if until:
            # Ignore all other findings, because it takes long to reduce each of them.
            known |= {way for way in ways if not way.endswith(until)}
        if ways - known:
            found += search.explain(cases, known)
        if lost and not until and _LOST not in known:
            found.append(Finding(_LOST, lost[0].kind, tuple((lost[0].track, frame) for frame in lost[0].frames)))
        for finding in found[before:]:
            click.echo(f"[fuzz] {show(finding)}", err=True)
        if len(found) >= limits.findings or (until and any(finding.way.endswith(until) for finding in found)):
            break
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            click.echo(f"[fuzz] {search.tally.frames:,} frames, {len(found)} findings", err=True)
    search.tally.seconds = time.monotonic() - started
    search.tally.drops = search.datapath.drops()
    return found[: limits.findings]


def hunt_over_devices(folder: Path, sources: Path | None, seed: int, frames: int) -> tuple[dict[str, int], list[str]]:
    """Run the search over devices. Returns counts, and findings as text. `frames` 0: does nothing."""
    if not frames:
        return {"frames": 0, "deliveries": 0, "arrived": 0}, []
    objects = {"endpoint": build.build("endpoint", CACHE, sources)}
    name = f"wire{next(_wires)}"
    with ExitStack() as stack:
        wire = Wire(stack, folder / name, objects, name)
        lines = wire.hunt(Maker(seed), random.Random(seed), frames)
        return {"frames": wire.frames, "deliveries": wire.delivered, "arrived": wire.arrived}, lines


def report(tally: Tally) -> str:
    """The counts as text."""
    lines = [
        f"{tally.frames:,} frames in {tally.cases:,} cases, {tally.seconds:.0f} s",
        f"without programs: {tally.open_deliveries:,} deliveries, {tally.denied_in_open:,} of them denied by policy; "
        f"{tally.open_sockets:,} reached an application's socket",
        f"behind them: {tally.passed:,} frames passed, {tally.guarded_deliveries:,} deliveries, "
        f"{tally.guarded_sockets:,} reached an application's socket; {tally.tagged:,} allowed cases arrived",
        "dropped: " + ", ".join(f"{name} {count:,}" for name, count in sorted(tally.drops.items())),
        "cases: " + ", ".join(f"{name} {count:,}" for name, count in sorted(tally.kinds.items())),
    ]
    return "\n".join(lines)


def show(finding: Finding) -> str:
    """A finding as text: its kind, and each frame as bytes and as decoded by scapy."""
    import scapy.layers.inet6  # noqa: F401 - it teaches Ether what is inside
    from scapy.layers.l2 import Ether

    lines = [f"{finding.kind}: {finding.what}, {len(finding.steps)} frames"]
    for track, frame in finding.steps[-_SHOWN:]:
        lines.append(f"  {track} gso {frame.gso_size}: {frame.data.hex()}")
        lines.append(f"    {Ether(frame.data).summary()}")
    return "\n".join(lines)


@click.command()
@click.option("--frames", default=1_000_000, show_default=True, help="Stop after this many.")
@click.option("--seconds", default=900.0, show_default=True, help="Stop after this time.")
@click.option("--seed", type=int, help="Makes the same frames again; without it one is drawn and printed.")
@click.option("--findings", default=5, show_default=True, help="Stop after this many different findings.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for findings, one JSON file each.")
@click.option("--sources", type=click.Path(exists=True, path_type=Path), help="The eBPF sources of another tree.")
@click.option("--replay", type=click.Path(exists=True, path_type=Path), multiple=True, help="Run only saved findings.")
@click.option("--mutant", type=click.Choice([*MUTANTS, "all"]), multiple=True, help="Must find what a fix prevents.")
@click.option("--wire", default=20_000, show_default=True, help="Then so many frames with offloads, over devices.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the result.")
def fuzz(
    frames: int,
    seconds: float,
    seed: int | None,
    findings: int,
    save: Path | None,
    sources: Path | None,
    replay: tuple[Path, ...],
    mutant: tuple[str, ...],
    wire: int,
    output: str,
) -> None:
    """Try the packet parser against a real kernel: nothing that policy denies may be delivered behind the programs."""
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    limits = Limits(frames, seconds, findings)
    with surroundings() as folder:
        if mutant:
            sys.exit(_mutants(folder, MUTANTS if "all" in mutant else mutant, seed, limits))
        with searching(folder, sources) as search:
            if replay:
                sys.exit(_replay(search, replay))
            click.echo(f"[fuzz] seed {seed}", err=True)
            found = hunt(search, Maker(seed), limits)
            tally = search.tally
        over, lines = hunt_over_devices(folder, sources, seed, wire)
    if output == "json":
        click.echo(
            json.dumps(
                {
                    "seed": seed,
                    **asdict(tally),
                    "findings": [asdict(finding) for finding in found],
                    "wire": over | {"findings": lines},
                }
            )
        )
    else:
        click.echo(report(tally))
        click.echo("over devices, with offloads: " + ", ".join(f"{count:,} {name}" for name, count in over.items()))
        click.echo("\n".join([*lines, f"{len(found) + len(lines)} findings (seed {seed})"]))
    if save and found:
        save.mkdir(parents=True, exist_ok=True)
        for number, finding in enumerate(found):
            (save / f"seed{seed}-{number}.json").write_text(finding.as_json())
    if tally.open_sockets < tally.frames * _LEAST_REACHING:
        raise CannotRunError(f"only {tally.open_sockets:,} of {tally.frames:,} frames reached an application's socket")
    if found or lines:
        sys.exit(1)


def _replay(search: Search, paths: tuple[Path, ...]) -> int:
    """Run saved findings. Returns 0 if the programs stop all of them and this kernel delivers them without programs."""
    status = 0
    for path in paths:
        delivery, is_real = search.replayed(steps_from(path))
        what = f"{way_of(delivery)} ({reached(delivery)})" if delivery else "held"
        click.echo(f"{path.name}: {what}{'' if is_real else ', but this kernel delivers none of it'}")
        status |= delivery is not None or not is_real
    return status


def _mutants(folder: Path, names: Iterable[str], seed: int, limits: Limits) -> int:
    """Run mutants. Returns 0 if for each of them the search found what its fix prevents."""
    status = 0
    for name in names:
        mutant = MUTANTS[name]
        with mutated_sources(mutant) as tree:
            if mutant.wire:
                over, lines = hunt_over_devices(folder, tree, seed, _WIRE_MUTANT)
                hits = [line for line in lines if mutant.finds in line]
                words = f"after {over['frames']:,} frames: {hits[0].splitlines()[0]}" if hits else "NOT FOUND"
                click.echo(f"{name} ({mutant.what}): {words}")
                status |= not hits
                continue
        with mutated_sources(mutant) as tree, searching(folder, tree) as search:
            found = hunt(search, Maker(seed), limits, until=mutant.finds)
            hit = next((finding for finding in found if finding.way.endswith(mutant.finds)), None)
            words = f"after {search.tally.frames:,} frames: {hit.what}" if hit else "NOT FOUND"
            click.echo(f"{name} ({mutant.what}): {words}")
            status |= hit is None
    return status


def main() -> None:
    try:
        fuzz.main(prog_name="python -m perf.fuzz", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"fuzz: {error}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
