"""`nodenet policy`: computes the effect of NetworkPolicies from manifests, a running lab or a cluster, without
the kernel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import click

from netpolicy import ends, matrix
from netpolicy.cluster import Cluster
from netpolicy.evaluate import Evaluator
from netpolicy.explain import as_json, explain
from netpolicy.lint import lint as find_mistakes
from netpolicy.party import Traffic
from nodenet.cli import policy_format, policy_sources
from nodenet.cli.output import Column, Format, emit_document, output_option, table
from nodenet.cli.policy_diff import diff_command
from nodenet.cli.policy_sources import Source, source_options
from nodenet.cli.policy_suggest import suggest_command
from nodenet.cli.show import policy_get
from nodenet.cli.target import DEFAULT_SOCKET, SOCKET_VARIABLE, targets
from nodenet.errors import BadInputError, NodenetError


@click.group()
def policy() -> None:
    """Compute, explain, check, compare and suggest NetworkPolicies.

    The objects come from manifests (-f), a running lab (--lab) or a cluster (--kubeconfig, --context). For each
    manifest with a pod template (Deployments, CronJobs, also custom kinds) pods are assumed: one per replica, named
    WORKLOAD-0, WORKLOAD-1 and so on. A workload whose pods are in the input adds none.
    """


for _command in (policy_get, suggest_command, diff_command):
    policy.add_command(_command)


@policy.command("matrix")
@source_options
@click.option(
    "--ports", metavar="PORT[/PROTO],...", help="Ports to check for every pod. Default: each pod's containerPorts."
)
@output_option
def matrix_command(source: Source, ports: str | None, output: Format) -> None:
    """Compute which pods may connect to which. The JSON has the format of `nodenet lab probe --matrix`."""
    asked = None
    if ports is not None:
        try:
            asked = matrix.parse_ports(ports)
        except ValueError as error:
            raise BadInputError(f"--ports: {error}") from error
    cluster = policy_sources.read(source)
    # A real pod without an address does not run yet, so no connection to it is possible.
    pods = tuple(pod for pod in cluster.pods if pod.ips or not source.running)
    cells = matrix.matrix_for(replace(cluster, pods=pods), asked)
    emit_document(matrix.as_json(cells), output, policy_format.grid(cells))


@policy.command("explain")
@click.option("--from", "start", required=True, metavar="NS/POD|NS/WORKLOAD|IP", help="Source of the connection.")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="NS/POD|NS/WORKLOAD|svc/NAME.NS|IP",
    help="Destination of the connection.",
)
@click.option("--port", required=True, metavar="PORT[/PROTO]", help="Destination port (tcp, udp, sctp), or icmp.")
@source_options
@click.option(
    "--socket",
    metavar="PATH",
    help=f"The agent that answers without -f, --lab and --kubeconfig ({SOCKET_VARIABLE}; else {DEFAULT_SOCKET}).",
)
@output_option
@click.pass_context
def explain_command(
    ctx: click.Context,
    start: str,
    destination: str,
    port: str,
    source: Source,
    socket: str | None,
    output: Format,
) -> None:
    """Explain whether a connection is allowed, and why. Exit code 1 if at least one of the connections is denied."""
    try:
        traffic = ends.parse_traffic(port)
    except ValueError as error:
        raise BadInputError(f"--port: {error}") from error
    if source.given:
        answers = _computed(policy_sources.read(source), start, destination, traffic, source.namespace)
    else:
        answers = [_ask_agent(socket, start, destination, traffic)]
    allowed = all(answer["allowed"] for answer in answers)
    data = {
        "from": start,
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
    evaluator = Evaluator.of(cluster)
    return [
        {**as_json(explain(evaluator, c.source, c.destination, c.traffic)), "service": c.via or None} for c in found
    ]


def _ask_agent(socket: str | None, source: str, destination: str, traffic: Traffic) -> dict[str, Any]:
    """The answer of the running agent, for pods (NS/POD) and addresses, with the current policies."""
    from nodenet.rpc.client import Client

    if traffic.protocol is None:
        raise BadInputError("--port: icmp: the agent answers for TCP, UDP and SCTP", "use -f, --lab or --kubeconfig")

    async def ask(protocol: str) -> dict[str, Any]:
        (target,) = targets({"socket": socket})
        async with Client(target.address) as client:
            return await client.explain(source, destination, traffic.port, protocol)

    return asyncio.run(ask(str(traffic.protocol)))


@policy.command("lint")
@source_options
@output_option
@click.pass_context
def lint_command(ctx: click.Context, source: Source, output: Format) -> None:
    """Find common mistakes in policies. Exit code 1 if there are any."""
    cluster = policy_sources.read(source)
    findings = find_mistakes(cluster)
    rows = [finding.as_json() for finding in findings]
    columns = [
        Column("POLICY", "name"),
        Column("CHECK", "check"),
        Column("FIELD", "field"),
        Column("FINDING", "message"),
    ]
    shown = [{**row, "name": str(finding.policy)} for row, finding in zip(rows, findings, strict=True)]
    number = len(cluster.policies) + len(cluster.cluster_policies)
    text = table(shown, columns) if rows else f"{number} policies: no mistakes found"
    emit_document({"findings": rows}, output, text)
    ctx.exit(1 if findings else 0)


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
