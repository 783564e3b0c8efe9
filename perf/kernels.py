"""The kernel matrix: boots each kernel, loads and attaches all programs, and checks Services and policy end to end.

    python -m perf.kernels [KERNEL...] [-o json] [--refresh]

One virtual machine per kernel, two at a time. Exit status 1 if any kernel fails, 3 if none could be tried.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from nodenet.bpf import build, loader
from nodenet.errors import CannotRunError, NodenetError
from perf.vm import cannot_run, get_kernel, names, run_in_vm
from perf.vm.machine import VmError

ROOT = Path(__file__).parents[1]
PROGRAMS = len((*loader.TC_PROGRAMS, *loader.UPLINK_PROGRAMS, *loader.CGROUP_PROGRAMS, loader.SOCK_SERVICE))
# Time limit for one kernel in seconds of this machine's clock. An idle machine needs about 30, a busy one 150.
TIMEOUT = 400.0
PARTS = ("packets", "services", "policy", "path")
_BPF_CACHE = Path("/var/cache/nodenet")
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel of the table. `checks`: {part: {check: "" or the problem}}. `missing`: features that the kernel lacks,
    with the effect of each. `error`: why the run ended early. `skipped`: why the kernel is not available."""

    kernel: str
    release: str = ""
    boots: bool = False
    programs: int = 0
    missing: tuple[dict[str, str], ...] = ()
    checks: dict[str, dict[str, str]] = field(default_factory=dict)
    error: str = ""
    skipped: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if all programs were loaded and all checks of all parts passed."""
        done = all(self.checks.get(part) for part in PARTS)
        return self.boots and self.programs == PROGRAMS and not self.error and done and not self.failures()

    def failures(self) -> list[tuple[str, str, str]]:
        """The failed checks as (part, check, problem)."""
        return [(part, name, text) for part, found in self.checks.items() for name, text in found.items() if text]

    def part(self, name: str) -> str:
        """Passed and all checks of a part as "24/24", or "-" if the part was not reached."""
        found = self.checks.get(name)
        return f"{sum(not text for text in found.values())}/{len(found)}" if found else "-"


def check_kernel(name: str, objects: str, *, refresh: bool = False, stop: threading.Event | None = None) -> Row:
    """Boot one kernel and run perf.kernel_check in it. `objects`: its argument. Errors of a kernel are in the row and
    are not raised."""
    try:
        kernel = get_kernel(name, refresh=refresh)
    except CannotRunError as error:
        return Row(name, skipped=str(error))
    command = [sys.executable, "-m", "perf.kernel_check", objects]
    try:
        result = run_in_vm(kernel, command, cwd=ROOT, timeout=TIMEOUT, stop=stop)
    except VmError as error:
        return Row(name, kernel.release, error=f"{error}\n{error.hint}")
    seconds = round(result.seconds, 1)
    try:
        report: dict[str, Any] = json.loads(result.output)
    except ValueError:
        last = "\n".join(result.console.splitlines()[-20:])
        return Row(
            name, kernel.release, boots=True, error=f"the check ended with {result.status}\n{last}", seconds=seconds
        )
    return Row(
        kernel=name,
        release=report["release"],
        boots=True,
        programs=len(report["programs"]),
        missing=tuple(report["missing"]),
        checks=report["checks"],
        error=report["error"],
        seconds=seconds,
    )


def run_matrix(
    wanted: Sequence[str], *, refresh: bool = False, tell: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Check all kernels, two at a time. `tell` is called after each one. Raises CannotRunError if virtual machines
    cannot run here."""
    if reason := cannot_run():
        raise CannotRunError(reason)
    # Compile once, on the host: in the virtual machine clang takes half a minute. The machines get the names of the
    # objects, so that they do not compile either if the sources change while the matrix runs.
    built = build.build_every_variant(_BPF_CACHE)
    objects = json.dumps([{program: str(path) for program, path in built[cast].items()} for cast in (False, True)])
    stop = threading.Event()
    rows: dict[str, Row] = {}

    def one(name: str) -> None:
        rows[name] = check_kernel(name, objects, refresh=refresh, stop=stop)
        if not stop.is_set():
            tell(rows[name])

    with ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="vm") as pool:
        jobs = [pool.submit(one, name) for name in wanted]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[name] for name in wanted]


def table(rows: Sequence[Row]) -> str:
    """The matrix for a terminal, then the missing features, failures and skipped kernels."""
    head = ("KERNEL", "RELEASE", "BOOTS", "PROGRAMS", "PACKETS", "SERVICES", "POLICY", "PATHS", "SECONDS", "")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        if row.skipped:
            lines.append((row.kernel, "-", "-", "-", "-", "-", "-", "-", "-", "skipped"))
            continue
        cells = [row.part(part) for part in PARTS]
        verdict = "ok" if row.ok else "FAILED"
        boots = "yes" if row.boots else "no"
        loaded = f"{row.programs}/{PROGRAMS}"
        lines.append((row.kernel, row.release, boots, loaded, *cells, f"{row.seconds:.1f}", verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for row in rows:
        text += [f"{row.kernel}: no {gone['feature']}: {gone['without']}" for gone in row.missing]
        text += [f"{row.kernel}: {part}: {name}: {what}" for part, name, what in row.failures()]
        text += [f"{row.kernel}: {row.error}"] if row.error else []
        text += [f"{row.kernel}: skipped: {row.skipped}"] if row.skipped else []
    return "\n".join(text)


@click.command()
@click.argument("kernel", nargs=-1, type=click.Choice(names()))
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the result.")
@click.option("--refresh", is_flag=True, help="Ask the mirror for newer packages of each kernel.")
def kernels(kernel: Sequence[str], output: str, refresh: bool) -> None:
    """Try the datapath on other kernels: 5.10 (the floor) to the newest that Debian packages.

    Each boots in a virtual machine of its own. Without a name: all of them.
    """

    def tell(row: Row) -> None:
        word = "skipped" if row.skipped else "ok" if row.ok else "FAILED"
        click.echo(f"[kernels] {row.kernel}: {word} ({row.seconds:.1f} s)", err=True)

    rows = run_matrix(kernel or names(), refresh=refresh, tell=tell)
    if output == "json":
        click.echo(json.dumps([asdict(row) | {"ok": row.ok} for row in rows], indent=1))
    else:
        click.echo(table(rows))
    tried = [row for row in rows if not row.skipped]
    if not tried:
        raise CannotRunError(f"no kernel could be had: {rows[0].skipped}")
    if not all(row.ok for row in tried):
        sys.exit(1)


def main() -> None:
    try:
        kernels.main(prog_name="python -m perf.kernels", standalone_mode=True)
    except NodenetError as error:
        click.echo(f"kernels: {error}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
