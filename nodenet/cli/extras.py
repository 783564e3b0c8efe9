"""The extras of the installation: the modules of each, and the error of a command whose extra is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from nodenet.cli.program import pip
from nodenet.errors import CannotRunError

_AGENT = ("aiohttp", "prometheus_client")
_LAB = (*_AGENT, "dns", "pyroute2")
# Names of modules, as they are imported. The names of the projects are in pyproject.toml.
EXTRAS: dict[str, tuple[str, ...]] = {"agent": _AGENT, "lab": _LAB, "bench": (*_LAB, "matplotlib")}


class MissingExtraError(CannotRunError):
    """An extra is not installed. The message is one sentence with the command that installs it."""

    def __init__(self, command: str, extra: str) -> None:
        super().__init__(
            f"nodenet {command} needs the extra {extra!r}, which is not installed: {pip()} install 'nodenet[{extra}]'"
        )


def require(extra: str, command: str) -> None:
    """Raises MissingExtraError if a module of `extra` is not installed. Nothing is imported."""
    if any(find_spec(module) is None for module in EXTRAS[extra]):
        raise MissingExtraError(command, extra)


def missing_extra(error: ModuleNotFoundError, command: str, extra: str) -> MissingExtraError | None:
    """The error for a module that was missing while `command` ran. None if the module does not belong to `extra`: then
    it is a bug, and the traceback must be shown."""
    module = (error.name or "").partition(".")[0]
    return MissingExtraError(command, extra) if module in EXTRAS[extra] else None
