"""`nodenet sysdump`: a report about a cluster, or about this node, as one tar file."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.request import urlopen

import click

from nodenet.cli import extras
from nodenet.cli.cluster_options import cluster_options, run
from nodenet.cli.target import target_options, targets
from nodenet.errors import BadInputError, NodenetError

if TYPE_CHECKING:
    from nodenet.cluster.archive import Report
    from nodenet.kube.config import ClusterAccess

# Rows of each list of an agent, and flows.
_MOST_ROWS = 20000
_FLOWS = 1000
_LISTS = ("endpoint", "identity", "service", "policy", "ipcache", "ct", "map")
_METRICS = "127.0.0.1:9909"
_METRICS_VARIABLE = "NODENET_METRICS_ADDRESS"


@click.command()
@click.option("--local", is_flag=True, help="Only this node, through the agent's socket instead of the Kubernetes API.")
@click.option(
    "-o", "--output", "path", metavar="FILE", help="Default: nodenet-sysdump-TIME.tar.gz; - for the standard output."
)
@cluster_options
@target_options
def sysdump(local: bool, path: str | None, kubeconfig: str | None, context: str | None, **where: str | None) -> None:
    """Collect logs, status, maps, events, node facts and configuration of all nodes into one tar file.

    Secrets, tokens and kubeconfigs are not read, and what looks like a credential is redacted. Look into the file
    before you give it away: it has names and addresses of pods. Parts that could not be read are listed in errors.txt.
    """
    if not local and any(where.values()):
        raise BadInputError("--socket, --server, --lab and --node need --local")
    extras.require("agent", "sysdump")
    from nodenet.cluster.archive import Report

    top = f"nodenet-sysdump-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    # A wrong kubeconfig is noticed before the file is made.
    access = None if local else _access(kubeconfig, context)
    with _opened(path or f"{top}.tar.gz") as file, Report(file, top) as report:
        run(_local(report, where) if access is None else _cluster(access, report))
    for text in report.errors:
        click.echo(f"missing: {text}", err=True)
    if path != "-":
        click.echo(path or f"{top}.tar.gz")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Only the user may read the file. An incomplete one is deleted."""
    if path == "-":
        yield sys.stdout.buffer
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException:
        Path(path).unlink()
        raise


def _access(kubeconfig: str | None, context: str | None) -> ClusterAccess:
    from nodenet.cluster import client

    return client.access(kubeconfig, context)


async def _cluster(access: ClusterAccess, report: Report) -> None:
    from nodenet.cluster import sysdump
    from nodenet.cluster.client import Cluster

    async with Cluster(access) as cluster:
        await sysdump.collect(cluster, report, lambda text: click.echo(text, err=True))


async def _local(report: Report, where: dict[str, str | None]) -> None:
    from nodenet.agent import facts

    for name, text in facts.collect():
        report.text(f"node/{name}", text)
    found = targets(where)
    for target in found:
        await _agent(report, f"agent-{target.node}" if len(found) > 1 else "agent", target.address)
    _metrics(report)


async def _agent(report: Report, folder: str, address: str) -> None:
    """What the agent says of itself, and its maps."""
    from nodenet.rpc.client import Client

    async with Client(address) as client:
        try:
            report.document(f"{folder}/status.json", await client.status())
            for name in _LISTS:
                report.document(f"{folder}/{name}.json", await client.rows(name, _MOST_ROWS))
            report.text(f"{folder}/flows.jsonl", await _flows(client))
        except NodenetError as error:
            report.error(f"{folder}: {error}")


async def _flows(client: Any) -> str:
    from google.protobuf.json_format import MessageToJson

    from nodenet.rpc.pb.observer import observer_pb2

    request = observer_pb2.GetFlowsRequest(number=_FLOWS)
    found = io.StringIO()
    async for answer in client.get_flows(request):
        found.write(MessageToJson(answer, indent=None, preserving_proto_field_name=True) + "\n")
    return found.getvalue()


def _metrics(report: Report) -> None:
    host, _, port = os.environ.get(_METRICS_VARIABLE, _METRICS).rpartition(":")
    try:
        with urlopen(f"http://{host or '127.0.0.1'}:{port}/metrics", timeout=5) as answer:
            report.text("agent/metrics.txt", answer.read().decode(errors="replace"))
    except OSError as error:
        report.error(f"agent/metrics.txt: {host or '127.0.0.1'}:{port}: {error}")
