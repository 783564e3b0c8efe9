"""`nodenet bench`: measures eBPF, iptables, nftables and IPVS. The package perf does the work."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from nodenet.cli.extras import require
from nodenet.errors import BadInputError, CannotRunError

if TYPE_CHECKING:
    from perf.run import Settings

# The exit code that a shell reports for a program that SIGINT ended.
_INTERRUPTED = 130


@click.group(invoke_without_command=True)
@click.option(
    "--modes",
    default="direct,ebpf,ebpf-packet,iptables,nftables",
    show_default=True,
    help="direct, ebpf, ebpf-packet, iptables, nftables, ipvs.",
)
@click.option("--services", default="1,1000", show_default=True, help="Numbers of Services, 1 to 50000.")
@click.option(
    "--workloads",
    default="crr,program,update",
    show_default=True,
    help="crr, rr, udp, stream, program, update, policy, flows, memory, cni, paths, packets.",
)
@click.option("--backends", type=int, default=1, show_default=True, help="Backends of each Service.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Repetitions; all objects are created again for each.",
)
@click.option(
    "--rounds", type=click.IntRange(2), default=20, show_default=True, help="Blocks of each target in an epoch."
)
@click.option("--count", type=click.IntRange(10), default=60, show_default=True, help="Samples of one block.")
@click.option(
    "--updates", type=click.IntRange(1), default=3, show_default=True, help="Changes of one endpoint in an epoch."
)
@click.option(
    "--limit-seconds",
    type=float,
    default=60,
    show_default=True,
    help="Skip and report steps that take a mode longer than this (loading N Services, one change).",
)
@click.option("--cpu", type=int, default=0, show_default=True, help="CPU of client and server; -1: not pinned.")
@click.option("--vm", metavar="KERNEL", help="Run in a virtual machine with this kernel (6.1, 6.12, ...).")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with plots here."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> None:
    """Compare Service load balancing of eBPF with iptables, nftables and IPVS. Pod to pod is the upper bound.

    Everything runs in separate namespaces and is removed at the end. perf/README.md explains the figures.
    """
    if ctx.invoked_subcommand is not None:
        return
    _require_perf()
    require("bench", "bench")
    _check_outputs(options)
    settings = _settings(options)
    settings.check()
    report = _in_machine(options) if options["vm"] else _run(settings, options["quiet"])
    _write(report, options)


@bench.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def compare(before: Path, after: Path, output: str) -> None:
    """Show the differences between two JSON reports that are larger than the noise. Exit code 1 if something became
    worse."""
    _require_perf()
    from perf import compare as comparing
    from perf import counted

    old, new = _read(before), _read(after)
    # Times and numbers of instructions cannot be compared.
    if counted.is_counted(old) != counted.is_counted(new):
        raise BadInputError("one report holds times and the other instructions of a virtual machine")
    changes = comparing.compare(old, new)
    click.echo(json.dumps(changes, indent=1) if output == "json" else comparing.text(changes), nl=output == "json")
    if any(change["verdict"] == "worse" for change in changes["changes"]):
        raise SystemExit(1)


@bench.command()
@click.argument("report", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with plots here."
)
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A report of --vm or of other workloads, as a separate section of the page. May be given several times.",
)
def show(report: Path, html_file: Path | None, beside: tuple[Path, ...]) -> None:
    """Print the tables of a JSON report, or write its page."""
    _require_perf()
    from perf import counted
    from perf import report as reporting

    found, others = _read(report), [_read(path) for path in beside]
    mine = {row["workload"] for row in found["results"]}
    for other in others:
        apart = other["meta"].get("virtual") or mine.isdisjoint(row["workload"] for row in other["results"])
        if counted.is_counted(found) or not apart:
            raise BadInputError("--beside takes a report of --vm or of other workloads, beside a report of times")
    if html_file:
        _page(found, html_file, others)
        return
    click.echo(reporting.text(found), nl=False)
    for other in others:
        click.echo("\n" + reporting.text(other), nl=False)


def _require_perf() -> None:
    """Check that `perf` is nodenet's package, which the wheel contains. Raises CannotRunError if another module of that
    name hides it (Debian's linux-perf has one)."""
    import perf

    if not hasattr(perf, "__path__") or find_spec("perf.run") is None:
        raise CannotRunError(f"{perf.__file__} is not nodenet's package perf, but comes before it on sys.path")


def _settings(options: dict[str, Any]) -> Settings:
    from perf.blocks import Sizes
    from perf.run import Settings

    return Settings(
        modes=_words(options["modes"]),
        services=_numbers(options["services"]),
        workloads=_words(options["workloads"]),
        backends=options["backends"],
        cpu=None if options["cpu"] < 0 else options["cpu"],
        limit=options["limit_seconds"],
        sizes=Sizes(options["epochs"], options["rounds"], options["count"], options["updates"]),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word.replace("_", "")) for word in _words(text)}))
    except ValueError as error:
        raise BadInputError(f"--services: {text}: expected whole numbers, as in 1,1000,10000") from error


def _check_outputs(options: dict[str, Any]) -> None:
    """Check before minutes of measuring that the files can be written and the plots drawn."""
    for option in ("json_file", "html_file"):
        path = options[option]
        if path and not path.resolve().parent.is_dir():
            raise BadInputError(f"--{option.removesuffix('_file')}: {path}: there is no folder {path.parent}")
        if path and not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise BadInputError(f"--{option.removesuffix('_file')}: {path}: not writable")
    if options["html_file"]:
        from perf import html

        html.require()


def _run(settings: Settings, quiet: bool) -> dict[str, Any]:
    from perf.run import run

    started = time.monotonic()

    def progress(words: str) -> None:
        if not quiet:
            print(f"[{time.monotonic() - started:6.1f}] {words}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, _on_first_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run(settings, progress)
    except KeyboardInterrupt:
        print("nodenet bench: interrupted; everything that it created is removed", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_first_signal(_signal: int, _frame: FrameType | None) -> None:
    """Handle SIGINT or SIGTERM: the run ends and removes everything. A second signal must not interrupt that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_next_signal)
    raise KeyboardInterrupt


def _on_next_signal(_signal: int, _frame: FrameType | None) -> None:
    print("nodenet bench: already ending: removing everything that it created", file=sys.stderr, flush=True)


def _write(report: dict[str, Any], options: dict[str, Any]) -> None:
    from perf import report as reporting

    click.echo(reporting.text(report), nl=False)
    if options["json_file"]:
        _save(options["json_file"], json.dumps(report) + "\n")
    if options["html_file"]:
        _page(report, options["html_file"])


def _page(report: dict[str, Any], path: Path, beside: Sequence[dict[str, Any]] = ()) -> None:
    from perf import html

    html.require()
    _save(path, html.page(report, beside))


def _save(path: Path, text: str) -> None:
    """Raises CannotRunError if the file cannot be written. The tables have been printed before."""
    try:
        path.write_text(text)
    except OSError as error:
        raise CannotRunError(f"{path}: not written: {error.strerror}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(found["results"], list) or not isinstance(found["meta"], dict):
            raise TypeError("results and meta")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path}: not a report of nodenet bench: {error}") from error
    return found


def _in_machine(options: dict[str, Any]) -> dict[str, Any]:
    """Run the benchmark in a virtual machine."""
    from perf import vm_bench

    return vm_bench.main(options)
