"""Shows errors to users."""

from __future__ import annotations

from typing import IO, Any

import click

from nodenet.cli.program import pasteable
from nodenet.errors import NodenetError


class ShownError(click.ClickException):
    """Shows a NodenetError without a traceback: one sentence, a hint and the exit code."""

    def __init__(self, error: NodenetError) -> None:
        super().__init__(str(error))
        self.hint = error.hint
        setattr(self, "exit_code", error.exit_code)  # noqa: B010  click types it as a class variable

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr, because stdout is only for data."""
        click.echo(f"nodenet: {self.message}", err=True, file=file)
        if self.hint:
            click.echo(f"  hint: {pasteable(self.hint)}", err=True, file=file)
