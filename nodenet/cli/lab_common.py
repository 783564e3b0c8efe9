"""Options, messages and completion for the lab's commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from nodenet.lab.apply import ApplySet
    from nodenet.manifests import Manifest

_F = TypeVar("_F", bound=Callable[..., Any])


def say(message: str) -> None:
    """Print a note to stderr, because stdout is only for data."""
    click.echo(message, err=True)


def say_notes(prepared: ApplySet) -> None:
    """Print what the lab skips of the manifests, and which policies it does not enforce."""
    if prepared.warning:
        say(f"WARNING: {prepared.warning}")
    for skipped in prepared.skipped:
        say(f"skipped: {skipped}")


def lab_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from nodenet.lab import teardown

    return [CompletionItem(name) for name in teardown.labs() if name.startswith(incomplete)]


def node_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from nodenet.errors import NodenetError
    from nodenet.lab import files

    try:
        plan = files.read_state(ctx.params.get("name") or "lab").plan
    except NodenetError:
        return []
    return [CompletionItem(node.name) for node in plan.nodes if node.name.startswith(incomplete)]


def name_option(command: _F) -> _F:
    """The shared `--name`."""
    option = click.option(
        "--name",
        default="lab",
        show_default=True,
        metavar="NAME",
        shell_complete=lab_names,
        help="The lab's name; several can run at once.",
    )
    return option(command)


def load_manifests(files: Sequence[str]) -> list[Manifest]:
    """All objects of the files. Raises BadInputError if files were given but contain no objects."""
    from nodenet import manifests
    from nodenet.errors import BadInputError

    found = manifests.load(files, click.get_current_context().command_path)
    if files and not found:
        raise BadInputError(f"{', '.join(files)}: no Kubernetes objects", "give YAML files or a folder with YAML files")
    return found


def namespace_option(command: _F) -> _F:
    """The shared `-n`."""
    option = click.option(
        "-n", "--namespace", default="default", show_default=True, metavar="NS", help="Namespace of names without one."
    )
    return option(command)


def manifest_option(command: _F) -> _F:
    """The shared `-f`; the command's parameter is `files`."""
    option = click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        metavar="FILE_OR_DIR",
        help="Kubernetes YAML or JSON, also gzip; - for the standard input. May be given several times.",
    )
    return option(command)


def say_unserved(prepared: ApplySet) -> None:
    """Name what the objects use and the lab does not serve."""
    from nodenet.cli.unserved import unserved

    for sentence in unserved(obj.data for obj in prepared.objects):
        say(f"not served: {sentence}")
