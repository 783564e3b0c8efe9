"""`nodenet policy`: computes the effect of NetworkPolicies from manifests or from a running lab, without the kernel."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import click

from netpolicy import ends, matrix
from netpolicy.cluster import Cluster
from netpolicy.evaluate import Evaluator, Traffic
from netpolicy.explain import as_json, explain
from netpolicy.lint import lint as find_mistakes
from nodenet.cli import policy_format, policy_sources
from nodenet.cli.output import Column, Format, emit_document, output_option, table
from nodenet.cli.show import policy_get
from nodenet.cli.target import DEFAULT_SOCKET, SOCKET_VARIABLE, targets
from nodenet.errors import BadInputError, NodenetError

_FILES = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE_OR_DIR",
    type=click.Path(path_type=Path),
    help="Manifests: YAML files or folders. May be given several times.",
)
_NAMESPACE = click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of objects and names without one."
)
_LAB = click.option("--lab", "lab_name", metavar="NAME", help="Use the objects of a running lab instead of manifests.")


@click.group()
def policy() -> None:
    """Compute, explain and check NetworkPolicies.

    For each manifest with a pod template (Deployments, CronJobs, also custom kinds) pods are assumed: one per replica,
    named WORKLOAD-0, WORKLOAD-1 and so on.
    """


policy.add_command(policy_get)


@policy.command("matrix")
@_FILES
@_LAB
@_NAMESPACE
@click.option(
    "--ports", metavar="PORT[/PROTO],...", help="Ports to check for every pod. Default: each pod's containerPorts."
)
@output_option
def matrix_command(
    files: tuple[Path, ...], lab_name: str | None, namespace: str, ports: str | None, output: Format
) -> None:
    """Compute which pods may connect to which. The JSON has the format of `nodenet lab probe --matrix`."""
    asked = None
    if ports is not None:
        try:
            asked = matrix.parse_ports(ports)
        except ValueError as error:
            raise BadInputError(f"--ports: {error}") from error
    cluster = _cluster(files, lab_name, namespace)
    # A lab's pod without an address does not run yet, so no connection to it is possible.
    pods = [pod for pod in cluster.pods if pod.ips or not lab_name]
    cells = matrix.matrix_for(pods, cluster.policies, cluster.namespaces, asked)
    emit_document(matrix.as_json(cells), output, policy_format.grid(cells))


@policy.command("explain")
@click.option("--from", "source", required=True, metavar="NS/POD|NS/WORKLOAD|IP", help="Source of the connection.")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="NS/POD|NS/WORKLOAD|svc/NAME.NS|IP",
    help="Destination of the connection.",
)
@click.option("--port", required=True, metavar="PORT[/PROTO]", help="Destination port (tcp, udp, sctp), or icmp.")
@_FILES
@_LAB
@_NAMESPACE
@click.option(
    "--socket",
    metavar="PATH",
    help=f"The agent that answers without -f and --lab ({SOCKET_VARIABLE}; else {DEFAULT_SOCKET}).",
)
@output_option
@click.pass_context
def explain_command(
    ctx: click.Context,
    source: str,
    destination: str,
    port: str,
    files: tuple[Path, ...],
    lab_name: str | None,
    namespace: str,
    socket: str | None,
    output: Format,
) -> None:
    """Explain whether a connection is allowed, and why. Exit code 1 if at least one of the connections is denied."""
    try:
        traffic = ends.parse_traffic(port)
    except ValueError as error:
        raise BadInputError(f"--port: {error}") from error
    if files or lab_name:
        answers = _computed(_cluster(files, lab_name, namespace), source, destination, traffic, namespace)
    else:
        answers = [_ask_agent(socket, source, destination, traffic)]
    allowed = all(answer["allowed"] for answer in answers)
    data = {
        "from": source,
        "to": destination,
        "port": traffic.port,
        "protocol": str(traffic.protocol or "ICMP"),
        "allowed": allowed,
        "connections": answers,
    }
    emit_document(data, output, "\n\n".join(_grouped(answers)))
    ctx.exit(0 if allowed else 1)


def _computed(
    cluster: Cluster, source: str, destination: str, traffic: Traffic, namespace: str
) -> list[dict[str, Any]]:
    try:
        found = ends.connections(cluster, source, destination, traffic, namespace)
    except ends.NoBackendError as error:
        raise NodenetError(str(error)) from error
    except ends.UnknownEndError as error:
        raise BadInputError(str(error)) from error
    evaluator = Evaluator(cluster.policies, cluster.namespaces)
    return [
        {**as_json(explain(evaluator, c.source, c.destination, c.traffic)), "service": c.via or None} for c in found
    ]


def _ask_agent(socket: str | None, source: str, destination: str, traffic: Traffic) -> dict[str, Any]:
    """The answer of the running agent, for pods (NS/POD) and addresses, with the current policies."""
    from nodenet.rpc.client import Client

    if traffic.protocol is None:
        raise BadInputError("--port: icmp: the agent answers for TCP, UDP and SCTP", "use -f or --lab")

    async def ask(protocol: str) -> dict[str, Any]:
        (target,) = targets({"socket": socket})
        async with Client(target.address) as client:
            return await client.explain(source, destination, traffic.port, protocol)

    return asyncio.run(ask(str(traffic.protocol)))


@policy.command("lint")
@_FILES
@_LAB
@_NAMESPACE
@output_option
@click.pass_context
def lint_command(
    ctx: click.Context, files: tuple[Path, ...], lab_name: str | None, namespace: str, output: Format
) -> None:
    """Find common mistakes in policies. Exit code 1 if there are any."""
    cluster = _cluster(files, lab_name, namespace)
    findings = find_mistakes(cluster)
    rows = [finding.as_json() for finding in findings]
    columns = [
        Column("POLICY", "name"),
        Column("CHECK", "check"),
        Column("FIELD", "field"),
        Column("FINDING", "message"),
    ]
    shown = [{**row, "name": f"{row['namespace']}/{row['policy']}"} for row in rows]
    text = table(shown, columns) if rows else f"{len(cluster.policies)} policies: no mistakes found"
    emit_document({"findings": rows}, output, text)
    ctx.exit(1 if findings else 0)


def _cluster(files: tuple[Path, ...], lab_name: str | None, namespace: str) -> Cluster:
    if bool(files) == bool(lab_name):
        raise BadInputError("expected either -f FILE_OR_DIR or --lab NAME", "see --help")
    cluster = policy_sources.from_lab(lab_name) if lab_name else policy_sources.from_files(files, namespace)
    _print_notes(cluster)
    return cluster


def _print_notes(cluster: Cluster) -> None:
    """Print on stderr which kinds were skipped, and which pods cannot match ipBlocks because their address is
    unknown."""
    if cluster.skipped:
        kinds = Counter(name.partition(" ")[0] for name in cluster.skipped)
        counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        click.echo(f"note: kinds that do not affect policy were skipped: {counts}", err=True)
    blocks = any(
        peer.block is not None and (peer.block.cidr.prefixlen or peer.block.excepts)
        for found in cluster.policies
        for rule in (*found.ingress, *found.egress)
        for peer in rule.peers
    )
    unknown = [str(pod) for pod in cluster.pods if not pod.ips]
    if blocks and unknown:
        click.echo(
            f"note: ipBlock rules cannot match pods without status.podIP in the input: {_some(unknown)}",
            err=True,
        )


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _grouped(answers: list[dict[str, Any]]) -> list[str]:
    """Group connections with the same answer, so that replicas are printed once."""
    groups: dict[object, list[dict[str, Any]]] = {}
    for answer in answers:
        sides = [
            (side["reason"], *side["isolatedBy"], *(str(rule) for rule in side["allowedBy"]), len(side["notAllowedBy"]))
            for side in (answer["egress"], answer["ingress"])
        ]
        groups.setdefault((answer["port"], answer["protocol"], answer.get("service"), *sides), []).append(answer)
    return [policy_format.explanation(group[0], len(group) - 1) for group in groups.values()]
