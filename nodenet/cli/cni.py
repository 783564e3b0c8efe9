"""`nodenet cni`: installs and removes the plugin, and shows the leases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nodenet.cli.output import Column, Format, emit, output_option
from nodenet.errors import BadInputError

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILES = [Column("FILE", "file"), Column("STATE", "state")]


_bin_dir = click.option(
    "--bin-dir", type=_FOLDER, default="/opt/cni/bin", show_default=True, help="Where runtimes look for plugins."
)
_conf_dir = click.option(
    "--conf-dir", type=_FOLDER, default="/etc/cni/net.d", show_default=True, help="Where runtimes look for conflists."
)
_cache_dir = click.option(
    "--cache-dir", type=_FOLDER, default="/var/cache/nodenet", show_default=True, help="Cache of built files."
)


@click.group()
def cni() -> None:
    """Install the CNI plugin and show its leases."""


@cni.command()
@_bin_dir
@_conf_dir
@click.option(
    "--subnet", "subnets", multiple=True, help="A pod network of this node; once per family. Default: from the agent."
)
@click.option("--name", default="nodenet", show_default=True, help="Name of the network.")
@click.option("--bridge", default="cni0", show_default=True, help="Bridge that connects the pods.")
@click.option("--mtu", type=int, default=0, show_default=True, help="MTU of pods and bridge; 0: the uplink's.")
@click.option("--agent-socket", default="/run/nodenet/cni.sock", show_default=True, help="The agent's CNI socket.")
@click.option(
    "--require-agent/--no-require-agent",
    default=True,
    show_default=True,
    help="While the agent is unreachable: fail ADD (error 11, try again later), or attach pods without policies.",
)
@click.option(
    "--ip-masq/--no-ip-masq",
    default=False,
    show_default=True,
    help="Masquerade what leaves a pod's subnet, also to pods of other nodes. On a cluster use masquerade_ipv4 and "
    "masquerade_ipv6 of the agent instead.",
)
@_cache_dir
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
    ip_masq: bool,
    cache_dir: Path,
    output: Format,
) -> None:
    """Write the plugin, which needs no Python on the node, and then the conflist if it changed. Files are replaced
    atomically."""
    from nodenet.cni import install as installing
    from nodenet.cni.conflist import Options

    options = Options(subnets, name, bridge, mtu, agent_socket, require_agent, ip_masq)
    changed = installing.install(bin_dir, conf_dir, options, cache_dir)
    emit([{"file": str(p), "state": "written" if new else "unchanged"} for p, new in changed.items()], _FILES, output)


@cni.command()
@_cache_dir
@output_option
def build(cache_dir: Path, output: Format) -> None:
    """Build the plugin's two files, unless they are in the cache: for a container image that installs them."""
    from nodenet.cni import bundle

    made = bundle.build(cache_dir)
    rows = [{"file": str(path), "bytes": path.stat().st_size} for path in (made.launcher, made.alone)]
    emit(rows, [Column("FILE", "file"), Column("BYTES", "bytes")], output)


@cni.command()
@_bin_dir
@_conf_dir
@output_option
def uninstall(bin_dir: Path, conf_dir: Path, output: Format) -> None:
    """Remove the conflist, then the plugin. Running pods keep their network."""
    from nodenet.cni import install as installing

    gone = installing.uninstall(bin_dir, conf_dir)
    emit([{"file": str(p), "state": "removed" if was else "absent"} for p, was in gone.items()], _FILES, output)


@cni.command()
@click.option(
    "--data-dir", type=_FOLDER, default="/var/lib/cni/networks", show_default=True, help="host-local's dataDir."
)
@click.option("--run-dir", type=_FOLDER, default="/run/nodenet", show_default=True, help="The agent's run_dir.")
@click.option("--lab", metavar="NAME", help="The leases of this lab's nodes.")
@click.option("--node", metavar="NODE", help="Only this node of the lab. Default: all nodes.")
@output_option
@click.pass_context
def leases(
    ctx: click.Context, data_dir: Path, run_dir: Path, lab: str | None, node: str | None, output: Format
) -> None:
    """List the leased addresses: network, container, and the pod if this node knows it."""
    from nodenet.cni.leases import list_leases

    places = {"": (data_dir, run_dir)}
    if lab or node:
        for name in ("data_dir", "run_dir"):
            if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                raise BadInputError(f"--lab and --{name.replace('_', '-')} cannot be combined")
        places = _of_lab(lab or "lab", node)

    columns = [
        Column("NETWORK", "network"),
        Column("ADDRESS", "address"),
        Column("CONTAINER", "container", lambda value: str(value)[:13] or "-"),
        Column("INTERFACE", "ifname"),
        Column("NAMESPACE", "namespace"),
        Column("POD", "pod"),
    ]
    rows: list[dict[str, Any]] = []
    for where, (data, run) in places.items():
        found, problems = list_leases(data, run)
        rows += [{"node": where, **row} if where else row for row in found]
        for problem in problems:
            click.echo(f"nodenet: {problem}", err=True)
    emit(rows, [*([Column("NODE", "node")] if lab or node else []), *columns], output)


def _of_lab(lab: str, node: str | None) -> dict[str, tuple[Path, Path]]:
    """dataDir and run_dir of each node of a lab. Raises BadInputError for an unknown lab or node."""
    from nodenet.lab import files, names

    plan = files.read_state(lab).plan
    nodes = [plan.node(node).name] if node else [one.name for one in plan.nodes]
    return {one: (files.ipam_dir(plan.name, one), names.node_dir(plan.name, one)) for one in nodes}
