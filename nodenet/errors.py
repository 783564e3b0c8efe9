"""Errors that reach a person: a sentence naming object and field, a hint, and the exit code of interface.md."""

from __future__ import annotations


class NodenetError(Exception):
    """Base of every error shown without a traceback. `hint` is what to do next, or empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadInputError(NodenetError):
    """Bad usage or bad input: the message names the object and the field and says what was expected."""

    exit_code = 2


class CannotRunError(NodenetError):
    """This machine or this moment does not allow it: the message says why."""

    exit_code = 3


class TableFullError(CannotRunError):
    """A map has no room for one more entry."""
