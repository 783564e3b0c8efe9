"""`nodenet status --cluster`: prints the state of every node, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from nodenet.cli import extras
from nodenet.cli.cluster_options import run
from nodenet.cli.output import Column, Format, emit_document, table

Obj = dict[str, Any]

_COLUMNS = (
    Column("NODE", "node"),
    Column("AGENT", "agent"),
    Column("HEALTHY", "healthy"),
    Column("RESTARTS", "restarts"),
    Column("PODS", "endpoints"),
    Column("VERSION", "version"),
    Column("KERNEL", "kernel"),
)


def show(kubeconfig: str | None, context: str | None, wait_seconds: float | None, output: Format) -> bool:
    """Print the document. Returns whether the cluster is well. `wait_seconds`: wait so long until it is."""
    extras.require("agent", "status --cluster")
    from nodenet.cluster import client

    found = run(_document(client.access(kubeconfig, context), wait_seconds))
    emit_document(found, output, text(found))
    return bool(found["ok"])


async def _document(access: Any, wait_seconds: float | None) -> Obj:
    from nodenet.cluster import client, status

    async with client.Cluster(access) as cluster:
        if wait_seconds is None:
            return await status.status(cluster)
        return await status.wait(cluster, wait_seconds, lambda text: click.echo(f"waiting: {text}", err=True))


def text(document: Mapping[str, Any]) -> str:
    nodes: Sequence[Mapping[str, Any]] = document["nodes"]
    healthy = sum(node["healthy"] is True for node in nodes)
    lines = [f"cluster: {'OK' if document['ok'] else 'NOT OK'}"]
    lines += [f"  ! {problem}" for problem in document["problems"]]
    if found := document["daemonSet"]:
        numbers = ", ".join(f"{found[key]} {key}" for key in ("desired", "updated", "ready", "available"))
        lines += [f"  DaemonSet: {numbers}", f"  image: {found['image']}"]
    lines.append(f"  agents: {healthy} of {len(nodes)} nodes healthy")
    pods = document["pods"]
    other = pods["running"] - pods["attached"]
    # Only if every agent has told its number.
    known = all(node["endpoints"] is not None for node in nodes)
    note = f" ({other} began without nodenet: delete them to attach them)" if known and other > 0 else ""
    lines.append(
        f"  pods: {pods['attached']} attached by nodenet, {pods['running']} running with a network of their own{note}"
    )
    return "\n".join([*lines, "", table(nodes, _COLUMNS)])
