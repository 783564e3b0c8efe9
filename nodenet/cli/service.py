"""`nodenet service`: Services as the datapath balances them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import click

from nodenet.cli.output import Column, Format, emit_document, output_option, table
from nodenet.cli.show import gather_rows, list_command
from nodenet.cli.target import target_options, targets
from nodenet.errors import BadInputError, NodenetError

Row = Mapping[str, Any]


@click.group()
def service() -> None:
    """Services as the datapath balances them."""


service.add_command(list_command("service", "list", "List the frontends, their backends and their flows."))


@service.command()
@click.argument("name")
@output_option
@target_options
def show(name: str, output: Format, **where: str | None) -> None:
    """Show one Service: its addresses with their flows, and for each endpoint whether this node uses it, or why not.

    NAME is NAMESPACE/NAME, or a name in any namespace. FLOWS are open now (of the node's pods and from outside, as
    counted within the last minute); OPENED and DROPPED count since the agent's start.
    """
    found = targets(where)
    answers = asyncio.run(gather_rows(found, "service_view", 0, name))
    silent = [(one, answer) for one, answer in zip(found, answers, strict=True) if isinstance(answer, NodenetError)]
    if len(silent) == len(found):
        raise silent[0][1]
    views = [
        {"node": one.node, **row} if len(found) > 1 else row
        for one, part in zip(found, answers, strict=True)
        if not isinstance(part, NodenetError)
        for row in part
    ]
    if not views:
        raise BadInputError(f"there is no Service {name}", "nodenet service list shows all")
    text = "\n\n".join(view_text(view) for view in views)
    emit_document(views[0] if len(views) == 1 else views, output, text)
    for one, error in silent:
        click.echo(f"nodenet: {one.node} is missing: {error}", err=True)
    if silent:
        raise SystemExit(1)


_SCOPES = {
    "all": "all",
    "internal": "of this node",
    "external": "from outside",
    "node": "of this node's processes",
}
_ADDRESSES = (
    Column("TYPE", "type"),
    Column("TRAFFIC", "scope", lambda scope: _SCOPES.get(scope, scope)),
    Column("ADDRESS", "frontend"),
    Column("PROTOCOL", "protocol"),
    Column("PORT", "port"),
    Column("POLICY", "trafficPolicy"),
    Column("BACKENDS", "backends", lambda found: str(len(found))),
    Column("FLOWS", "flows"),
    Column("OPENED", "opened"),
    Column("DROPPED", "dropped"),
)
_BACKENDS = (
    Column("BACKEND", "backend"),
    Column("PROTOCOL", "protocol"),
    Column("PORT", "port"),
    Column("POD", "pod"),
    Column("NODE", "node"),
    Column("STATE", "state"),
    Column("USED HERE", "used"),
)


def view_text(view: Row) -> str:
    """One Service as text. Pure."""
    node = f" on {view['node']}" if view.get("node") else ""
    lines = [f"Service {view['service']}{node}: {view['type']}", *(f"  {line}" for line in _spec(view))]
    if view["addresses"]:
        lines += _indented(table(view["addresses"], _ADDRESSES))
    if view["backends"]:
        lines += _indented(table([{**row, "used": used_text(row)} for row in view["backends"]], _BACKENDS))
    elif not view["noAddress"]:
        lines += ["  it has no endpoint"]
    lines += [f"  not served: {message}" for message in view["notServed"]]
    return "\n".join(lines)


def _spec(view: Row) -> Sequence[str]:
    if view["noAddress"]:
        return [f"no address: {view['noAddress']}"]
    affinity = view["affinitySeconds"]
    lines = [
        f"session affinity: {f'ClientIP, {affinity} s' if affinity else 'none'}",
        f"traffic policy: internal {view['internalTrafficPolicy']}, external {view['externalTrafficPolicy']}",
    ]
    if view["sourceRanges"] is not None:
        lines.append(f"source ranges of the load balancer: {', '.join(view['sourceRanges'])}")
    if view["healthCheckNodePort"]:
        lines.append(f"health check node port: {view['healthCheckNodePort']}")
    if view["publishNotReadyAddresses"]:
        lines.append("endpoints that are not ready are used (publishNotReadyAddresses)")
    return lines


def used_text(backend: Row) -> str:
    """`yes`; or which traffic uses it, and why other traffic does not. Equal reasons are given once."""
    reasons: dict[str, list[str]] = {}
    for traffic, reason in backend["unused"].items():
        reasons.setdefault(reason, []).append(traffic)
    used = backend["usedBy"]
    if used and not reasons:
        return "yes"
    if not used and len(reasons) == 1:
        return f"no: {next(iter(reasons))}"
    parts = [f"by {', '.join(used)}"] if used else []
    parts += [f"not by {', '.join(traffic)}: {reason}" for reason, traffic in reasons.items()]
    return "; ".join(parts) or "no: the Service has no address"


def _indented(text: str) -> list[str]:
    return ["", *(f"  {line}".rstrip() for line in text.splitlines())]
