"""`nodenet connectivity`: tests a cluster's network with pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nodenet.cli import extras
from nodenet.cli.cluster_options import cluster_options, run
from nodenet.cli.output import Column, Format, emit, emit_document, output_option
from nodenet.errors import BadInputError

if TYPE_CHECKING:
    from nodenet.cluster.connectivity.values import Check, Result
    from nodenet.kube.config import ClusterAccess

# Time that passes after a policy is written is shown from here.
_SHOWN_SECONDS = 0.3
_MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


@click.group()
def connectivity() -> None:
    """Test a cluster's network with pods."""


@connectivity.command()
@cluster_options
@click.option("--list", "only_list", is_flag=True, help="List the checks and exit.")
@click.option(
    "--test",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Only this check; may be given several times. It must not be skipped.",
)
@click.option("--image", metavar="IMAGE", help="An image with python3. Default: that of the nodenet DaemonSet.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME",
    help="Where to put the pods: one or two nodes. Default: the first two that can run pods.",
)
@click.option(
    "--egress-target",
    metavar="HOST:PORT",
    default="",
    help="A TCP server outside of the cluster, for the check `egress`.",
)
@click.option(
    "--timeout",
    "ready_seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest time until all pods are ready.",
)
@click.option("--keep", is_flag=True, help="Do not delete the namespace of the test.")
@output_option
def test(
    kubeconfig: str | None,
    context: str | None,
    only_list: bool,
    wanted: Sequence[str],
    keep: bool,
    output: Format,
    **values: Any,
) -> None:
    """Make pods on two nodes, try connections between them, and delete them.

    Exit code 1 if a check fails, or if one of --test is skipped.
    """
    from nodenet.cluster.connectivity.checks import CHECKS

    known = {check.name: check for check in CHECKS}
    if unknown := [name for name in wanted if name not in known]:
        raise BadInputError(f"--test {unknown[0]}: no such check", f"the checks: {', '.join(known)}")
    chosen = [known[name] for name in known if not wanted or name in wanted]
    if only_list:
        rows = [{"name": check.name, "about": check.about} for check in chosen]
        emit(rows, [Column("NAME", "name"), Column("WHAT IT SHOWS", "about")], output)
        return
    extras.require("agent", "connectivity test")
    from nodenet.cluster import client

    access = client.access(kubeconfig, context)
    results = run(_test(access, chosen, _Printer(output), keep, values))
    skipped = [result.check for result in results if result.state == "skipped" and result.check in wanted]
    emit_document([_row(result) for result in results], output, _summary(results, skipped))
    if skipped or any(result.state == "failed" for result in results):
        raise SystemExit(1)


async def _test(
    access: ClusterAccess, checks: Sequence[Check], printer: _Printer, keep: bool, values: dict[str, Any]
) -> list[Result]:
    from nodenet.cluster.client import Cluster
    from nodenet.cluster.connectivity import session, stage

    async with Cluster(access) as cluster:
        image = values.pop("image") or await stage.default_image(cluster)
        options = stage.Options(image=image, **values)
        return await session.test(cluster, options, checks, session.Report(printer.say, printer.done), keep=keep)


class _Printer:
    """Prints the progress: to stdout for people, to stderr if stdout is for a program."""

    def __init__(self, output: Format) -> None:
        self._err = output is not Format.TABLE

    def say(self, text: str) -> None:
        click.echo(f"[..] {text}", err=True)

    def done(self, result: Result) -> None:
        click.echo(result_text(result), err=self._err)


def result_text(result: Result) -> str:
    """A result in lines: what failed comes with what was seen, and how to look further."""
    head = f"[{_MARKS[result.state]}] {result.title}"
    if result.state == "skipped":
        return f"{head}: {result.reason}"
    settled = f", settled after {result.settled:.1f} s" if result.settled >= _SHOWN_SECONDS else ""
    count = f"{result.connections} connections, " if result.connections else ""
    lines = [f"{head}: {count}{result.seconds:.1f} s{settled}"]
    for failure in result.failures:
        lines.append(f"    {failure.what}: {failure.got}")
        lines += [f"      seen: {line}" for line in failure.flows]
        lines += [f"      $ {command}" for command in failure.commands]
    return "\n".join(lines)


def _summary(results: Sequence[Result], skipped: Sequence[str]) -> str:
    counts = Counter(result.state.value for result in results)
    text = ", ".join(f"{counts[state]} {state}" for state in ("passed", "failed", "skipped"))
    return f"{text} of {len(results)}" + (f"; skipped, but named by --test: {', '.join(skipped)}" if skipped else "")


def _row(result: Result) -> dict[str, Any]:
    return {**asdict(result), "state": result.state.value}
