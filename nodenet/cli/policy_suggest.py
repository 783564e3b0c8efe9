"""`nodenet policy suggest`: the least NetworkPolicies that allow recorded connections."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from netpolicy.cluster import Cluster
from netpolicy.recorded import Record
from netpolicy.suggest import Suggestion, Wish, suggest, without_labels
from netpolicy.types import PolicyError
from nodenet.cli import policy_flows, policy_format, policy_sources, times
from nodenet.cli.output import Format, encode
from nodenet.cli.policy_sources import Source, source_options
from nodenet.cli.target import DEFAULT_SOCKET, SERVER_VARIABLE, SOCKET_VARIABLE, targets
from nodenet.errors import BadInputError, NodenetError


@click.command("suggest", short_help="Write the least policies that allow recorded flows.")
@click.option(
    "--flows",
    metavar="FILE",
    help="Recorded flows: the output of `nodenet observe -o json` or `hubble observe -o json`, also gzip; - for the "
    "standard input. Default: the flows that the agents of --lab, or the agent of --socket, have in memory.",
)
@click.option(
    "--since", metavar="TIME", help="Without --flows: flows since this time: 5m, 1h30m, 2026-01-31T12:00:00Z."
)
@click.option("--socket", metavar="PATH", help=f"The agent with the flows ({SOCKET_VARIABLE}; else {DEFAULT_SOCKET}).")
@click.option("--server", metavar="ADDRESS", help=f"The same as host:port or unix:///path ({SERVER_VARIABLE}).")
@source_options
@click.option(
    "--only",
    "only",
    multiple=True,
    metavar="NS",
    help="Suggest policies for this namespace only; may be given several times. Default: all but kube-system, "
    "kube-public and kube-node-lease.",
)
@click.option(
    "--dns/--no-dns", default=True, show_default=True, help="Allow DNS questions although none were recorded."
)
@click.option(
    "--outside",
    type=click.Choice(["each", "any"]),
    default="each",
    show_default=True,
    help="Addresses outside the cluster: each recorded one, or one block for all of them without the pod networks.",
)
@click.option("--default-deny", is_flag=True, help="Also isolate the workloads of these namespaces that were not seen.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json", "table"]),
    default="yaml",
    show_default=True,
    help="yaml: manifests to apply, with what was seen once as comments. table: the connections.",
)
def suggest_command(
    flows: str | None,
    since: str | None,
    socket: str | None,
    server: str | None,
    source: Source,
    only: tuple[str, ...],
    dns: bool,
    outside: str,
    default_deny: bool,
    output: str,
) -> None:
    """Suggest the least NetworkPolicies that allow the recorded connections.

    One policy for each workload that was seen, which isolates it in both directions. Give the objects (-f, --lab or
    --kubeconfig) so that ports can be named and workloads that were not seen are listed; without them pods are known by
    the labels in the flows.

    \b
    nodenet observe --lab demo --all -o json > flows.json
    nodenet policy suggest --lab demo --flows flows.json > policies.yaml
    nodenet policy diff --lab demo --instead policies.yaml --flows flows.json
    """
    policy_sources.require_one_stdin([*source.files, flows or ""])
    record = _record(flows, since, socket, server, source.lab)
    cluster = policy_sources.read(source) if source.given else Cluster()
    found = _checked(record, cluster, Wish(only, dns, default_deny, outside == "any"))
    if output == "yaml":
        click.echo(policy_format.suggestion_manifests(found))
    elif output == "json":
        click.echo(encode(found.as_json(), Format.JSON))
    else:
        click.echo(policy_format.connections(found.connections))


def _checked(record: Record, cluster: Cluster, wish: Wish) -> Suggestion:
    """The suggestion, with its notes on stderr. Raises BadInputError for flows that give none, and NodenetError if it
    would deny a recorded connection."""
    passed = record.passed()
    if not passed:
        raise NodenetError(
            f"no connection was found in the flows ({record.ignored} flows do not show one)",
            "record flows while the application works: nodenet observe --all -o json",
        )
    unknown = without_labels(passed, cluster)
    if unknown:
        raise BadInputError(
            f"the flows have no labels of {policy_format.some(unknown)}, so no podSelector can be found for them",
            "give the objects of the cluster too: -f FILE_OR_DIR, --lab NAME or --kubeconfig FILE",
        )
    try:
        found = suggest(passed, cluster, wish)
    except PolicyError as error:
        raise BadInputError(f"a flow has a name or label that no object can have: {error}") from error
    for note in policy_format.suggestion_notes(found, sum(record.denied().values()), _existing(found, cluster)):
        click.echo(f"note: {note}", err=True)
    if found.denied:
        raise NodenetError(
            f"the suggested policies would deny {len(found.denied)} recorded connections, first {found.denied[0]}",
            "this is a bug of nodenet: please report it with the flows",
        )
    click.echo(f"note: replayed {len(passed)} recorded connections: 0 are denied", err=True)
    return found


def _record(flows: str | None, since: str | None, socket: str | None, server: str | None, lab: str | None) -> Record:
    if flows is not None:
        for name, value in (("--since", since), ("--socket", socket), ("--server", server)):
            if value:
                raise BadInputError(f"--flows and {name} cannot be combined: {name} is for the flows of agents")
        return policy_flows.from_file(flows)
    start = None
    if since is not None:
        try:
            start = times.parse(since, datetime.now(UTC)).astimezone(UTC)
        except ValueError as error:
            raise BadInputError(f"--since: {since!r}: {error}") from error
    return policy_flows.from_agents(targets({"socket": socket, "server": server, "lab": lab}), start)


def _existing(found: Suggestion, cluster: Cluster) -> int:
    """How many policies the namespaces with suggestions have already."""
    namespaces = {policy["metadata"]["namespace"] for policy in found.policies}
    return sum(policy.namespace in namespaces for policy in cluster.policies)
