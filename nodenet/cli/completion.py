"""`nodenet completion SHELL`: prints a completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script: `source <(nodenet completion bash)`."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell}: this version of click does not support completion for it")
    click.echo(kind(ctx.find_root().command, {}, "nodenet", "_NODENET_COMPLETE").source())
