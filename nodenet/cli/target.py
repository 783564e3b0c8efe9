"""The options that select the agents for a command: --socket, --server or --lab with --node, and their environment
variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from nodenet.errors import BadInputError, CannotRunError

DEFAULT_SOCKET = "/run/nodenet/agent.sock"
SOCKET_VARIABLE = "NODENET_SOCKET"
# The variable that the hubble CLI uses.
SERVER_VARIABLE = "HUBBLE_SERVER"

_F = TypeVar("_F", bound=Callable[..., Any])


class Target(NamedTuple):
    """One agent. `node` is its node's name in a lab, else empty."""

    address: str
    node: str = ""


def target_options(command: _F) -> _F:
    """Add the common options. The command takes them as `**where` and passes them to `targets`."""
    for option in (
        click.option("--node", metavar="NODE", help="Only this node of the lab. Default: all nodes."),
        click.option("--lab", metavar="NAME", help="The agents of this lab."),
        click.option("--server", metavar="ADDRESS", help=f"host:port or unix:///path ({SERVER_VARIABLE})."),
        click.option(
            "--socket", metavar="PATH", help=f"The agent's unix socket ({SOCKET_VARIABLE}; else {DEFAULT_SOCKET})."
        ),
    ):
        command = option(command)
    return command


def targets(
    where: Mapping[str, str | None], environment: Mapping[str, str] = os.environ, root: Path | None = None
) -> list[Target]:
    """The agents that the options select: one, or those of a lab. `root` is the folder of all labs.

    Raises BadInputError for options that exclude each other, and for a lab or node that does not exist; CannotRunError
    for a lab without nodes yet.
    """
    given = [name for name in ("socket", "server", "lab") if where.get(name)]
    if len(given) > 1:
        raise BadInputError(f"--{given[0]} and --{given[1]} cannot be combined: each names an agent")
    node = where.get("node") or ""
    # --node without --lab means the lab with the default name.
    if where.get("lab") or node:
        if given and not where.get("lab"):
            raise BadInputError(f"--node names a node of a lab and cannot be combined with --{given[0]}")
        return _lab(where.get("lab") or "lab", node, root)
    address = where.get("socket") or where.get("server") or environment.get(SOCKET_VARIABLE)
    return [Target(address or environment.get(SERVER_VARIABLE) or DEFAULT_SOCKET)]


def _lab(name: str, node: str, root: Path | None) -> list[Target]:
    from nodenet.lab.names import RUN_ROOT, check_lab_name

    folder = (root or RUN_ROOT) / check_lab_name(name)
    if not folder.is_dir():
        raise BadInputError(
            f"lab {name}: there is no such lab", "nodenet lab up starts a lab, nodenet lab list shows all labs"
        )
    nodes = sorted(path.parent.name for path in folder.glob("*/agent.yaml"))
    if not nodes:
        raise CannotRunError(f"lab {name} has no nodes yet", f"nodenet lab status --name {name}")
    if node and node not in nodes:
        raise BadInputError(f"lab {name} has no node {node} (its nodes: {', '.join(nodes)})")
    return [Target(str(folder / one / "agent.sock"), one) for one in ([node] if node else nodes)]
