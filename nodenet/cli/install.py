"""`nodenet install`, `upgrade` and `uninstall`: nodenet on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nodenet.cli import extras
from nodenet.cli.cluster_options import cluster_options, run
from nodenet.errors import BadInputError

if TYPE_CHECKING:
    from nodenet.cluster.install import Step
    from nodenet.cluster.release import Release
    from nodenet.kube.config import ClusterAccess

_F = TypeVar("_F", bound=Callable[..., Any])
_WAIT_SECONDS = 300.0
STAYS = """What stays on each node, so that the pods that run now keep their network:
  /sys/fs/bpf/nodenet                    eBPF programs and maps
  /etc/cni/net.d/10-nodenet.conflist     the configuration of the plugin
  /opt/cni/bin/nodenet, .nodenet-*       the plugin
  /var/lib/cni/networks                  leases of addresses
  /run/nodenet                           endpoints
  interfaces of pods and their bridge, routes (proto 110), programs on the uplink, tables of nf_tables
  net.ipv4.ip_local_reserved_ports       the ports that the agent reserved: those in /run/nodenet/reserved-ports
  /run/systemd/network/00-nodenet.network  systemd-networkd leaves interfaces of pods to nodenet
`nodenet uninstall --clean-nodes` removes it with the rest, and `nodenet cleanup` on one node."""
# Names of pods that are printed.
_MOST_NAMES = 20


def _say(text: str) -> None:
    click.echo(text, err=True)


def _release_options(command: _F) -> _F:
    for option in (
        click.option(
            "--wait-duration",
            type=click.FloatRange(min=1),
            default=_WAIT_SECONDS,
            show_default=True,
            metavar="SECONDS",
            help="The longest wait.",
        ),
        click.option("--wait", is_flag=True, help="Wait until every node is ready."),
        click.option("--dry-run", is_flag=True, help="Change nothing, and print what would be applied."),
        click.option(
            "--force", is_flag=True, help="Take over fields that another manager (kubectl, a controller) has set."
        ),
        click.option(
            "--set",
            "values",
            multiple=True,
            metavar="NAME=VALUE",
            help="A value of daemonset/chart/values.yaml: image.repository, image.tag, apiServers, config.KEY, "
            "monitoring.enabled, ... May be given several times.",
        ),
        click.option("--overlay", metavar="NAME", help="kind, replace-kube-proxy, ... Default: what fits the cluster."),
    ):
        command = option(command)
    return cluster_options(command)


@click.command()
@_release_options
def install(
    kubeconfig: str | None, context: str | None, overlay: str | None, values: Sequence[str], **how: Any
) -> None:
    """Install nodenet on the cluster of the kubeconfig: a DaemonSet with its rights and its configuration.

    The API servers' addresses are those of the Service default/kubernetes, if --set apiServers does not name them.
    --dry-run prints the objects as YAML; with --overlay and the API servers it needs no cluster.
    """
    from nodenet.cluster import release

    parsed = release.parse_values(values)
    if how["dry_run"] and (rendered := _offline(overlay, parsed)):
        click.echo(rendered)
        return
    extras.require("agent", "install")
    from nodenet.cluster import client

    run(_install(client.access(kubeconfig, context), overlay, parsed, how))


def _offline(overlay: str | None, values: Mapping[str, str]) -> str:
    """The objects as YAML if no cluster needs to be asked for that; else ""."""
    from nodenet.cluster import release

    if overlay is None:
        return ""
    wanted = release.Release(overlay, values)
    return _yaml(wanted) if release.api_servers(wanted) or not release.needs_api_servers(wanted) else ""


async def _install(access: ClusterAccess, overlay: str | None, values: Mapping[str, str], how: dict[str, Any]) -> None:
    from nodenet.cluster import clean_nodes, client, install, release

    async with client.Cluster(access) as cluster:
        if not how["dry_run"]:
            await clean_nodes.require_none_left(cluster)
        if await install.daemon_set(cluster) is not None and not how["dry_run"]:
            raise BadInputError(
                f"DaemonSet {release.NAMESPACE}/{release.NAME}: nodenet is installed already",
                "nodenet upgrade changes it",
            )
        wanted = release.Release(overlay or await install.choose_overlay(cluster), values)
        wanted = await install.with_api_servers(cluster, wanted)
        if how["dry_run"]:
            click.echo(_yaml(wanted))
            return
        _say(_title(wanted))
        steps = await install.plan(cluster, release.objects(wanted), force=how["force"])
        await _carry_out(cluster, steps, how)


@click.command()
@_release_options
def upgrade(
    kubeconfig: str | None, context: str | None, overlay: str | None, values: Sequence[str], **how: Any
) -> None:
    """Change an installation to this version of nodenet. Prints each field that changes.

    --overlay and --set that were given earlier stay as they are, unless they are given again. If no API servers were
    given, their addresses are read from the cluster again; --set apiServers= goes back to that.
    """
    extras.require("agent", "upgrade")
    from nodenet.cluster import client, release

    parsed = release.parse_values(values)
    run(_upgrade(client.access(kubeconfig, context), overlay, parsed, how))


async def _upgrade(access: ClusterAccess, overlay: str | None, values: Mapping[str, str], how: dict[str, Any]) -> None:
    from nodenet.cluster import clean_nodes, client, install, release

    async with client.Cluster(access) as cluster:
        if not how["dry_run"]:
            await clean_nodes.require_none_left(cluster)
        found = await install.daemon_set(cluster)
        if found is None:
            raise BadInputError(
                f"DaemonSet {release.NAMESPACE}/{release.NAME}: nodenet is not installed", "nodenet install"
            )
        # Made by kubectl: its overlay is not known, and --overlay must name it.
        before = None if overlay else release.of(found)
        if before is None and not overlay:
            raise BadInputError(
                f"--overlay: required: DaemonSet {release.NAMESPACE}/{release.NAME} was not made by nodenet install",
                "give the overlay, and the values (--set) that its manifests have",
            )
        wanted = (before or release.Release(str(overlay))).with_values(values)
        release.require_readable(found, wanted)
        wanted = await install.with_api_servers(cluster, wanted)
        _say(_title(wanted))
        steps = await install.plan(cluster, release.objects(wanted), force=how["force"])
        for line in _shown(steps):
            click.echo(line)
        if not how["dry_run"]:
            await _carry_out(cluster, steps, how)


@click.command()
@cluster_options
@click.option("--dry-run", is_flag=True, help="Delete nothing, and print what would be deleted.")
@click.option(
    "--clean-nodes",
    is_flag=True,
    help="Also take every node back to bare (`nodenet cleanup`): pods that run now lose their network.",
)
@click.option(
    "--wait-duration",
    type=click.FloatRange(min=1),
    default=_WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait of --clean-nodes.",
)
def uninstall(
    kubeconfig: str | None, context: str | None, dry_run: bool, clean_nodes: bool, wait_duration: float
) -> None:
    """Delete nodenet's objects from the cluster, and say what stays on the nodes."""
    from nodenet.cluster import client

    run(_uninstall(client.access(kubeconfig, context), dry_run, wait_duration if clean_nodes else 0))


async def _uninstall(access: ClusterAccess, dry_run: bool, clean_seconds: float) -> None:
    """`clean_seconds` 0: leave the nodes as they are."""
    from nodenet.cluster import clean_nodes, client, conditions, install

    async with client.Cluster(access) as cluster:
        await install.daemon_set(cluster)
        found = await install.installed(cluster)
        if not found:
            raise BadInputError("the cluster has no object of an installation of nodenet")
        if dry_run:
            for obj in found:
                click.echo(f"{client.describe(obj)}: would be deleted")
        else:
            if clean_seconds:
                await clean_nodes.clean(cluster, clean_seconds, _say)
                # The agents' DaemonSet is gone already.
                found = await install.installed(cluster)
            await install.remove(cluster, found, _say)
            await conditions.remove(cluster, _say)
            if clean_seconds:
                await _name_pods(cluster)
    if not clean_seconds:
        click.echo(STAYS)


async def _name_pods(cluster: Any) -> None:
    """Pods that ran when their node was cleaned: the kubelet does not notice that they have no network."""
    from nodenet.cluster import client
    from nodenet.cluster.pods import has_own_network

    pods = [pod["metadata"] for pod in await cluster.list(client.PODS) if has_own_network(pod)]
    click.echo("The nodes are bare." + (f" {len(pods)} pods run without a network:" if pods else ""))
    for metadata in pods[:_MOST_NAMES]:
        click.echo(f"  {metadata['namespace']}/{metadata['name']}")
    if pods:
        more = f"  and {len(pods) - _MOST_NAMES} more\n" if len(pods) > _MOST_NAMES else ""
        click.echo(f"{more}Delete them when the next network is installed, so that they start again.")


async def _carry_out(cluster: Any, steps: Sequence[Step], how: dict[str, Any]) -> None:
    from nodenet.cluster import install

    await install.carry_out(cluster, steps, _say, force=how["force"])
    if how["wait"]:
        await install.wait_rollout(cluster, how["wait_duration"], _say)
        _say("every node is ready")
    else:
        _say("nodenet status --cluster --wait waits until every node is ready")


def _title(wanted: Release) -> str:
    values = ", ".join(f"{name}={value}" for name, value in sorted(wanted.values.items()))
    servers = f"; API servers of the cluster: {wanted.discovered}" if wanted.discovered else ""
    return f"overlay {wanted.overlay}" + (f" with {values}" if values else "") + servers


def _yaml(wanted: Release) -> str:
    import yaml

    from nodenet.cluster import release

    return str(yaml.safe_dump_all(release.objects(wanted), sort_keys=False)).rstrip("\n")


def _shown(steps: Sequence[Step]) -> list[str]:
    from nodenet.cluster.client import describe

    lines = []
    for step in steps:
        if step.effect != "unchanged":
            lines.append(f"{step.effect} {describe(step.obj)}")
            lines += [f"    {field}" for field in step.fields]
    return lines or ["nothing changes"]
