"""`nodenet lab apply`, `delete` and `get`: objects of a running lab, as with kubectl."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from nodenet.cli.lab_common import (
    load_manifests,
    manifest_option,
    name_option,
    namespace_option,
    say,
    say_notes,
    say_unserved,
)
from nodenet.errors import BadInputError, NodenetError

if TYPE_CHECKING:
    from nodenet.lab.apiserver.http_client import Objects
    from nodenet.lab.apiserver.resources import Resource
    from nodenet.lab.apply import ApplySet
    from nodenet.lab.client import LabClient

Object = Mapping[str, Any]

# Seconds between two checks whether an object is deleted.
_POLL = 0.1


@click.command()
@manifest_option
@name_option
@namespace_option
@click.option("--wait/--no-wait", default=False, help="Wait until every pod is ready.")
@click.option("--timeout", default=120.0, show_default=True, metavar="SECONDS", help="With --wait: how long.")
def apply(files: Sequence[str], name: str, namespace: str, wait: bool, timeout: float) -> None:
    """Create or change the manifests' objects. All are checked before the first one is changed."""
    from nodenet.lab import apply as applying
    from nodenet.lab import up
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    prepared = _prepared(files, namespace, client)
    for result in applying.apply(client.writer(), prepared):
        click.echo(result)
    say_unserved(prepared)
    if wait:
        up.wait_ready(client, say, time.monotonic() + timeout)


@click.command()
@manifest_option
@name_option
@namespace_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until they are deleted.")
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
def delete(
    files: Sequence[str],
    name: str,
    namespace: str,
    wait: bool,
    timeout: float,
    kind: str | None,
    names: Sequence[str],
) -> None:
    """Delete the manifests' objects, or KIND NAME... . Exit code 1 if a named one does not exist."""
    from nodenet.lab import apply as applying
    from nodenet.lab.client import LabClient

    if bool(files) == bool(kind) or bool(kind) != bool(names):
        raise click.UsageError("either -f FILE_OR_DIR, or KIND NAME...")
    if not kind:
        client = LabClient(name)
        prepared, writer = _prepared(files, namespace, client), client.writer()
        for result in applying.delete(writer, prepared):
            click.echo(result)
        if wait:
            wanted = [(prepared.resource(obj), obj.namespace, obj.name) for obj in prepared.objects]
            _until_gone(writer, wanted, timeout)
        return
    client = LabClient(name)
    resource = _resource(kind, client)
    space = namespace if resource.namespaced else ""
    writer = client.writer()
    found = {each: writer.delete(resource, space, each) for each in names}
    for each, there in found.items():
        click.echo(f"{resource.singular}/{each} {'deleted' if there else 'not found'}")
    if wait:
        _until_gone(writer, [(resource, space, each) for each, there in found.items() if there], timeout)
    if not all(found.values()):
        raise SystemExit(1)


def _until_gone(objects: Objects, wanted: Iterable[tuple[Resource, str, str]], timeout: float) -> None:
    """Wait until each object is deleted, or was recreated. Raises NodenetError naming an object that still exists after
    `timeout`."""
    deadline = time.monotonic() + timeout
    for resource, namespace, name in wanted:
        while (live := objects.get(resource, namespace, name)) and "deletionTimestamp" in live["metadata"]:
            if time.monotonic() > deadline:
                raise NodenetError(
                    f"{resource.singular}/{name} is still being deleted after {timeout:g} s",
                    "its node's agent has to run for that: see nodenet lab status",
                )
            time.sleep(_POLL)


def _prepared(files: Sequence[str], namespace: str, client: LabClient) -> ApplySet:
    from nodenet.lab import apply as applying

    if not files:
        raise click.UsageError("-f FILE_OR_DIR is needed")
    prepared = applying.prepare(load_manifests(files), namespace, client.custom())
    say_notes(prepared)
    return prepared


@click.command()
@name_option
@namespace_option
@click.argument("kind")
@click.argument("names", nargs=-1)
@click.option("-A", "--all-namespaces", is_flag=True, help="In every namespace.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.option("-w", "--watch", is_flag=True, help="Also print every later change.")
def get(
    name: str, namespace: str, kind: str, names: Sequence[str], all_namespaces: bool, output: str, watch: bool
) -> None:
    """Show objects: `nodenet lab get pods -A -o wide`, `lab get svc web -o yaml`."""
    from nodenet.lab.client import LabClient

    client = LabClient(name)
    resource = _resource(kind, client)
    space = "" if all_namespaces else namespace
    items, version = client.listing(resource, space)
    if names:
        items = [client.get(resource, namespace, each) for each in names]
    show_namespace = all_namespaces and resource.namespaced
    if items or output in ("json", "yaml"):
        click.echo(_render(resource, items, output, show_namespace, single=len(names) == 1))
    elif not watch:
        say(f"no {resource.plural}" + (f" in namespace {namespace}" if resource.namespaced and space else ""))
    if watch:
        _follow(client, resource, space, version, names, output, show_namespace)


def _follow(
    client: LabClient,
    resource: Resource,
    space: str,
    version: str,
    names: Sequence[str],
    output: str,
    show_namespace: bool,
) -> None:
    for event, obj in client.watch(resource, space, version):
        if event != "BOOKMARK" and (not names or obj["metadata"]["name"] in names):
            full = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
            text = _render(resource, [full], output, show_namespace, single=True)
            # Only the row: the header belongs to the first list.
            click.echo(text.partition("\n")[2] if output in ("table", "wide") else text)


def _render(resource: Resource, items: Sequence[Object], output: str, show_namespace: bool, *, single: bool) -> str:
    from nodenet.cli.output import Format, encode

    if output in ("json", "yaml"):
        data: Object = items[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(items)}
        return encode(data, Format(output))
    if output == "name":
        return "\n".join(f"{resource.singular}/{item['metadata']['name']}" for item in items)
    return _table(resource, items, show_namespace, wide=output == "wide")


def _table(resource: Resource, items: Iterable[Object], show_namespace: bool, *, wide: bool) -> str:
    from nodenet.cli.output import Column, table
    from nodenet.lab.apiserver import tables

    columns = tables.columns(resource.key)
    shown = [index for index, column in enumerate(columns) if wide or column.priority == 0]
    heads = [Column(columns[index].name.upper(), str(index)) for index in shown]
    rows = []
    for item in items:
        cells = tables.cells(resource.key, item, time.time())
        row = {str(index): str(cells[index]) for index in shown}
        rows.append({"namespace": item["metadata"].get("namespace", ""), **row})
    return table(rows, [Column("NAMESPACE", "namespace"), *heads] if show_namespace else heads)


def _resource(kind: str, client: LabClient) -> Resource:
    from nodenet.lab.apiserver.resources import RESOURCES, find

    resource = find(kind)
    if resource is None:
        custom = client.custom()
        resource = find(kind, custom)
    if resource is None:
        known = ", ".join(resource.plural for resource in (*RESOURCES, *custom))
        raise BadInputError(f"the lab does not know the kind {kind!r}", f"it knows {known}")
    return resource
