"""`nodenet status` and the list commands: they read the state of a running agent through its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from nodenet.cli.cluster_options import cluster_options
from nodenet.cli.columns import COLUMNS
from nodenet.cli.output import Column, Format, emit, emit_document, output_option
from nodenet.cli.target import Target, target_options, targets
from nodenet.errors import BadInputError, NodenetError

Row = Mapping[str, Any]


def print_rows(
    resource: str,
    output: Format,
    limit: int,
    where: Mapping[str, str | None],
    name: str = "",
    key: Sequence[str] = (),
) -> int:
    """Fetch one resource from the agents in `where` and print it. With several agents there is a column for the node.
    `name`, `key`: as in rpc.client.Client.rows. Returns the number of rows.

    If some agents do not answer, they are reported on stderr and the exit code is 1, so that an incomplete list does
    not look complete. If none answers, the first NodenetError is raised.
    """
    found = targets(where)
    answers = asyncio.run(gather_rows(found, resource, limit, name, key))
    silent = [(one, answer) for one, answer in zip(found, answers, strict=True) if isinstance(answer, NodenetError)]
    if len(silent) == len(found):
        raise silent[0][1]
    rows = [
        {"node": one.node, **row} if len(found) > 1 else row
        for one, part in zip(found, answers, strict=True)
        if not isinstance(part, NodenetError)
        for row in part
    ]
    emit(rows, (*((Column("NODE", "node"),) if len(found) > 1 else ()), *COLUMNS[resource]), output)
    for one, error in silent:
        click.echo(f"nodenet: {one.node} is missing: {error}", err=True)
    if silent:
        raise SystemExit(1)
    return len(rows)


async def gather_rows(
    where: Sequence[Target], resource: str, limit: int, name: str = "", key: Sequence[str] = ()
) -> list[list[dict[str, Any]] | NodenetError]:
    """The rows of each agent, or its error. `name`, `key`: as in rpc.client.Client.rows."""

    async def one(target: Target) -> list[dict[str, Any]] | NodenetError:
        from nodenet.rpc.client import Client

        try:
            async with Client(target.address) as client:
                return await client.rows(resource, limit, name, key)
        except NodenetError as error:
            return error

    return list(await asyncio.gather(*(one(target) for target in where)))


def list_command(resource: str, name: str, help_: str) -> click.Command:
    """A command that lists a resource of the agents."""

    @click.command(name, help=help_)
    @click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="At most N rows; 0: all.")
    @output_option
    @target_options
    def command(output: Format, limit: int, **where: str | None) -> None:
        print_rows(resource, output, limit, where)

    return command


def _group(name: str, resource: str, help_: str, list_help: str) -> click.Group:
    group = click.Group(name, help=help_)
    group.add_command(list_command(resource, "list", list_help))
    return group


endpoint = _group(
    "endpoint", "endpoint", "Pods that are attached to the node.", "List the endpoints and their isolation."
)
identity = _group("identity", "identity", "Label sets and their numbers.", "List the identities.")
ipcache = _group("ipcache", "ipcache", "Addresses and the identities behind them.", "List the addresses and CIDRs.")
ct = _group("ct", "ct", "Connection tracking entries of the node.", "List the connections of the node's pods.")
# For the `policy` group: `policy get`.
policy_get = list_command("policy", "get", "List the policy rules in the datapath of a node.")


@click.command()
@output_option
@target_options
@click.option("--cluster", is_flag=True, help="All nodes of the cluster of the kubeconfig.")
@click.option("--wait", is_flag=True, help="With --cluster: wait until everything is well.")
@click.option(
    "--wait-duration",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait of --wait.",
)
@cluster_options
def status(
    output: Format,
    cluster: bool,
    wait: bool,
    wait_duration: float,
    kubeconfig: str | None,
    context: str | None,
    **where: str | None,
) -> None:
    """Show whether the agent is healthy, and its state. Exit code 1 if it is not healthy, 3 if it does not answer.

    With --cluster: the DaemonSet, and the agents and networks of all nodes, through the Kubernetes API.
    """
    if cluster:
        _show_cluster(kubeconfig, context, wait_duration if wait else None, output, where)
        return
    if wait or kubeconfig or context:
        raise BadInputError("--wait, --kubeconfig and --context need --cluster")
    found = targets(where)
    answers = asyncio.run(_statuses(found))
    if len(found) == 1 and isinstance(answers[0], NodenetError):
        raise answers[0]
    documents = [
        {"node": one.node, "healthy": False, "problems": [str(answer)]} if isinstance(answer, NodenetError) else answer
        for one, answer in zip(found, answers, strict=True)
    ]
    text = "\n\n".join(status_text(document) for document in documents)
    emit_document(documents[0] if len(documents) == 1 else documents, output, text)
    # Several agents, none of which answers: the same exit code as for one.
    if all(isinstance(answer, NodenetError) for answer in answers):
        raise SystemExit(3)
    if not all(document.get("healthy") for document in documents):
        raise SystemExit(1)


def _show_cluster(
    kubeconfig: str | None,
    context: str | None,
    wait_seconds: float | None,
    output: Format,
    where: Mapping[str, str | None],
) -> None:
    from nodenet.cli import cluster_status

    if given := [name for name, value in where.items() if value]:
        raise BadInputError(f"--cluster and --{given[0]} cannot be combined: --cluster asks all agents through the API")
    if not cluster_status.show(kubeconfig, context, wait_seconds, output):
        raise SystemExit(1)


async def _statuses(where: Sequence[Target]) -> list[dict[str, Any] | NodenetError]:
    async def one(target: Target) -> dict[str, Any] | NodenetError:
        from nodenet.rpc.client import Client

        try:
            async with Client(target.address) as client:
                return await client.status()
        except NodenetError as error:
            return error

    return list(await asyncio.gather(*(one(target) for target in where)))


def status_text(document: Row) -> str:
    """The status as text: first the problems, then the rest."""
    lines = [f"{document.get('node') or 'agent'}: {'healthy' if document.get('healthy') else 'NOT HEALTHY'}"]
    lines += [f"  ! {problem}" for problem in document.get("problems") or ()]
    for name, value in document.items():
        if name not in ("node", "healthy", "problems"):
            lines += _status_lines(name, value, "  ")
    return "\n".join(lines)


def _status_lines(name: str, value: Any, indent: str) -> list[str]:
    if name == "lastSync" and isinstance(value, int | float):
        return [f"{indent}last sync: {_when(value) if value else 'never'}"]
    if isinstance(value, Mapping):
        if all(isinstance(inner, str | int | float | bool) or inner is None for inner in value.values()):
            words = ", ".join(f"{key} {_word(inner)}" for key, inner in value.items() if inner not in ("", None))
            return [f"{indent}{_title(name)}: {words or 'none'}"]
        found = [f"{indent}{_title(name)}:"]
        for key, inner in value.items():
            found += _status_lines(key, inner, indent + "  ")
        return found
    if isinstance(value, list):
        if name == "features":
            return [f"{indent}{name}: {_features(value)}"]
        if all(isinstance(one, Mapping) for one in value):
            return [f"{indent}{_title(name)}:", *(f"{indent}  {_line(one)}" for one in value)] if value else []
        return [f"{indent}{_title(name)}: {', '.join(map(str, value)) or 'none'}"]
    return [f"{indent}{_title(name)}: {_word(value)}"] if value not in ("", None) else []


def _when(value: float) -> str:
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _features(rows: Sequence[Row]) -> str:
    missing = [f"no {row['name']} ({row['without']})" for row in rows if not row["available"]]
    return "; ".join(missing) or f"all {len(rows)} available"


def _line(row: Row) -> str:
    return ", ".join(str(v) if key == "name" else f"{key} {_word(v)}" for key, v in row.items() if v != "")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _title(name: str) -> str:
    """Convert `lastError` to `last error`. Names with a capital first letter are kinds and stay the same."""
    if name[:1].isupper():
        return name
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
