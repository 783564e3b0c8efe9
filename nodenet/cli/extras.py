"""The extras of the installation: which modules each brings, and the error of a command whose extra is missing."""

from __future__ import annotations

from importlib.util import find_spec

from nodenet.cli.program import pip
from nodenet.errors import CannotRunError

_AGENT = ("aiohttp", "prometheus_client")
_LAB = (*_AGENT, "pyroute2")
# Modules, not names of projects, for they are what an import asks for. The projects are in pyproject.toml.
EXTRAS: dict[str, tuple[str, ...]] = {"agent": _AGENT, "lab": _LAB, "bench": (*_LAB, "matplotlib")}


class MissingExtraError(CannotRunError):
    """An extra is not installed. One sentence, with the command that installs it."""

    def __init__(self, command: str, extra: str) -> None:
        super().__init__(
            f"nodenet {command} needs the extra {extra!r}, which is not installed: {pip()} install 'nodenet[{extra}]'"
        )


def require(extra: str, command: str) -> None:
    """Raises MissingExtraError when a module of `extra` is not installed. Nothing is imported."""
    if any(find_spec(module) is None for module in EXTRAS[extra]):
        raise MissingExtraError(command, extra)


def explained(error: ModuleNotFoundError, command: str, extra: str) -> MissingExtraError | None:
    """The same error for a module that was missing while `command` ran; None when `extra` does not bring that module:
    then it is a defect of ours and must be seen as one."""
    module = (error.name or "").partition(".")[0]
    return MissingExtraError(command, extra) if module in EXTRAS[extra] else None
