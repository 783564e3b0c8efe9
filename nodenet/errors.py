"""Errors that are shown to users without a traceback: a message, a hint what to do next, and the exit code."""

from __future__ import annotations


class NodenetError(Exception):
    """Base class of all these errors. `hint` is empty if there is no advice."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadInputError(NodenetError):
    """Invalid usage or input. The message names the object and the field, and says what was expected."""

    exit_code = 2


class CannotRunError(NodenetError):
    """Not possible on this machine or at this moment. The message says why."""

    exit_code = 3


class TableFullError(CannotRunError):
    """A map has no room for one more entry."""
