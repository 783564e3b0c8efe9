"""`nodenet cleanup`: removes what nodenet or kube-proxy left on a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from nodenet.cli.output import Column, Format, emit, output_option
from nodenet.errors import CannotRunError, NodenetError

_FOLDER = click.Path(file_okay=False, path_type=Path)
_COLUMNS = [Column("WHAT", "what"), Column("STATE", "state")]
# What, how it is removed, and why it is kept ("": it is removed).
_Step = tuple[str, Callable[[], object], str]
# Rows to show, and failures.
_Done = tuple[list[dict[str, Any]], list[str]]


@click.command()
@click.option("--kube-proxy", is_flag=True, help="Remove what kube-proxy left, and nothing of nodenet.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The agent's configuration file. Default: the default folders.",
)
@click.option("--bin-dir", type=_FOLDER, default="/opt/cni/bin", show_default=True, help="The folder of CNI plugins.")
@click.option(
    "--conf-dir", type=_FOLDER, help="The folder of conflists. Default: `cni_conf_dir`, or else /etc/cni/net.d."
)
@output_option
def cleanup(
    kube_proxy: bool, dry_run: bool, config_file: Path | None, bin_dir: Path, conf_dir: Path | None, output: Format
) -> None:
    """Take this node back to bare: conflist, plugin, programs, interfaces of pods, routes, packet filter rules.

    Pods that run on the node lose their network. Stop the agent first; for --kube-proxy stop kube-proxy.
    """
    if kube_proxy:
        rows, failed = _kube_proxy(dry_run)
    else:
        rows, failed = _bare(config_file, bin_dir, conf_dir, dry_run)
    emit(rows, _COLUMNS, output)
    if failed:
        raise CannotRunError("not everything could be checked and removed: " + "; ".join(failed))


def _bare(config_file: Path | None, bin_dir: Path, conf_dir: Path | None, dry_run: bool) -> _Done:
    from nodenet.agent.cleanup import Folders, items
    from nodenet.agent.lock import no_agent
    from nodenet.agent.settings import read_config_of_any_node
    from nodenet.config import Config

    config = read_config_of_any_node(config_file) if config_file else Config("")
    folders = Folders(bin_dir, conf_dir or config.cni_conf_dir or Path("/etc/cni/net.d"))
    with no_agent(config.run_dir):
        return _run(items(config, folders), dry_run)


def _kube_proxy(dry_run: bool) -> _Done:
    from nodenet.link import kube_proxy

    unchecked = kube_proxy.unchecked()
    steps = [(str(found), partial(kube_proxy.remove, found), "") for found in kube_proxy.find()]
    rows, failed = _run(steps, dry_run)
    for one in unchecked:
        state = f"not checked: {one.why}"
        rows.append({"what": one.what, "state": state})
        failed.append(f"{one.what}: {state} (run on the node: {one.command})")
    return rows, failed


def _run(steps: Iterable[_Step], dry_run: bool) -> _Done:
    """Remove each, or only name it. Returns the rows to show, and the failures: one does not stop the others."""
    rows, failed = [], []
    for what, remove, kept in steps:
        state = f"kept: {kept}" if kept else "would be removed"
        if not dry_run and not kept:
            try:
                remove()
                state = "removed"
            except (NodenetError, OSError) as error:
                state = f"left: {error}"
                hint = error.hint if isinstance(error, NodenetError) else ""
                failed.append(f"{what}: {error}" + (f" ({hint})" if hint else ""))
        rows.append({"what": what, "state": state})
    return rows, failed
