"""The options that choose a cluster, and a run that can be interrupted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def cluster_options(command: _F) -> _F:
    """--kubeconfig and --context. The command takes them under these names."""
    for option in (
        click.option("--context", metavar="NAME", help="The context of the kubeconfig. Default: its current one."),
        click.option("--kubeconfig", metavar="FILE", help="Default: KUBECONFIG, or ~/.kube/config."),
    ):
        command = option(command)
    return command


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end. SIGTERM cancels it as Ctrl-C does, so that it cleans up."""

    async def guarded() -> _T:
        task = asyncio.ensure_future(main)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None
