"""`nodenet node`: prepares this node for the agent."""

from __future__ import annotations

from pathlib import Path

import click

from nodenet.cli.output import Column, Format, emit, output_option

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def node() -> None:
    """Prepare this node for the agent."""


@node.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The agent's configuration file.",
)
@click.option(
    "--bin-dir", type=_FOLDER, default="/opt/cni/bin", show_default=True, help="Where runtimes look for plugins."
)
@click.option("--cache-dir", type=_FOLDER, help="Cache of the built plugin. Default: cache_dir of the configuration.")
@click.option(
    "--networkd-dir",
    type=_FOLDER,
    help="systemd-networkd's folder, /run/systemd/network: write there that it leaves pods' interfaces alone.",
)
@output_option
def init(config_file: Path, bin_dir: Path, cache_dir: Path | None, networkd_dir: Path | None, output: Format) -> None:
    """Install the CNI plugin, mount the BPF file system if it is missing, and keep systemd-networkd from pods.

    For a container that runs before the agent's. Writes no conflist: the agent does that when it is ready
    (`cni_conf_dir`). Does nothing to what is in place already.
    """
    from nodenet.agent.datapath import refuse_later_state
    from nodenet.agent.preflight import mount_bpffs
    from nodenet.agent.settings import read_config_of_any_node
    from nodenet.cni import bundle
    from nodenet.cni import install as installing

    config = read_config_of_any_node(config_file)
    # The agent would not start: then the later version's plugin stays too.
    refuse_later_state(config)
    placed = installing.place(bin_dir, bundle.build(cache_dir or config.cache_dir))
    rows = [{"what": str(path), "state": "written" if new else "unchanged"} for path, new in placed.items()]
    rows.append({"what": f"bpffs for {config.bpffs}", "state": "mounted" if mount_bpffs(config) else "unchanged"})
    if networkd_dir is not None:
        rows.append({"what": f"systemd-networkd: {networkd_dir}", "state": _networkd(networkd_dir)})
    emit(rows, [Column("WHAT", "what"), Column("STATE", "state")], output)


def _networkd(folder: Path) -> str:
    """What was done. A failure does not stop the node: the agent puts back what networkd removes, and names it."""
    from nodenet.cni.conflist import Options
    from nodenet.link import networkd

    try:
        written = "written" if networkd.leave_alone(Options().bridge, folder) else "unchanged"
        # Each time: an earlier call may have failed.
        return f"{written}, reloaded" if networkd.reload() else f"{written}, it does not run"
    except OSError as error:
        click.echo(f"systemd-networkd: {error.strerror or error}: {networkd.HINT}", err=True)
        return "failed"
