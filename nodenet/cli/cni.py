"""`nodenet cni`: put the plugin onto a node, take it away, show who has which address."""

from __future__ import annotations

from pathlib import Path

import click

from nodenet.cli.output import Column, Format, emit, output_option

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILES = [Column("FILE", "file"), Column("STATE", "state")]


_bin_dir = click.option(
    "--bin-dir", type=_FOLDER, default="/opt/cni/bin", show_default=True, help="Where runtimes find plugins."
)
_conf_dir = click.option(
    "--conf-dir", type=_FOLDER, default="/etc/cni/net.d", show_default=True, help="Where they find conflists."
)


@click.group()
def cni() -> None:
    """Install the CNI plugin, show its leases."""


@cni.command()
@_bin_dir
@_conf_dir
@click.option("--subnet", "subnets", multiple=True, help="A pod network of this node; once per family.")
@click.option("--name", default="nodenet", show_default=True, help="Name of the network.")
@click.option("--bridge", default="cni0", show_default=True, help="Bridge that the pods are on.")
@click.option("--mtu", type=int, default=0, show_default=True, help="MTU of pods and bridge; 0: the kernel's default.")
@click.option("--agent-socket", default="/run/nodenet/cni.sock", show_default=True, help="The agent's CNI socket.")
@click.option("--require-agent", is_flag=True, help="No pod starts while the agent is away (error 11, try again).")
@output_option
def install(
    bin_dir: Path,
    conf_dir: Path,
    subnets: tuple[str, ...],
    name: str,
    bridge: str,
    mtu: int,
    agent_socket: str,
    require_agent: bool,
    output: Format,
) -> None:
    """Write the executable, then the conflist if it changed. Both appear whole or not at all."""
    from nodenet.cni import install as installing
    from nodenet.errors import BadInputError

    if not subnets:
        raise BadInputError("--subnet: required: no pod network for this node", "for example --subnet 10.244.1.0/24")
    options = installing.Options(subnets, name, bridge, mtu, agent_socket, require_agent)
    changed = installing.install(bin_dir, conf_dir, options)
    emit([{"file": str(p), "state": "written" if new else "unchanged"} for p, new in changed.items()], _FILES, output)


@cni.command()
@_bin_dir
@_conf_dir
@output_option
def uninstall(bin_dir: Path, conf_dir: Path, output: Format) -> None:
    """Remove the conflist, then the executable. Pods that run keep their network."""
    from nodenet.cni import install as installing

    gone = installing.uninstall(bin_dir, conf_dir)
    emit([{"file": str(p), "state": "removed" if was else "absent"} for p, was in gone.items()], _FILES, output)


@cni.command()
@click.option(
    "--data-dir", type=_FOLDER, default="/var/lib/cni/networks", show_default=True, help="host-local's dataDir."
)
@click.option("--run-dir", type=_FOLDER, default="/run/nodenet", show_default=True, help="The agent's run_dir.")
@output_option
def leases(data_dir: Path, run_dir: Path, output: Format) -> None:
    """Every leased address: network, container, and the pod where this node knows it."""
    from nodenet.cni.leases import listed

    columns = [
        Column("NETWORK", "network"),
        Column("ADDRESS", "address"),
        Column("CONTAINER", "container", lambda value: str(value)[:13] or "-"),
        Column("INTERFACE", "ifname"),
        Column("NAMESPACE", "namespace"),
        Column("POD", "pod"),
    ]
    rows, problems = listed(data_dir, run_dir)
    for problem in problems:
        click.echo(f"nodenet: {problem}", err=True)
    emit(rows, columns, output)
