"""The lock that the agent of a node holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nodenet.errors import CannotRunError

_FILE = "agent.lock"


@contextmanager
def agent_lock(run_dir: Path) -> Iterator[None]:
    """Hold the node's lock, `agent.lock`. The kernel releases it when the process ends, also after a crash.

    Raises CannotRunError if another agent holds it. Two agents would replace each other's maps and programs.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / _FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotRunError(f"{path}: another agent of this node is running", "stop it first") from error
        yield
    finally:
        os.close(fd)


@contextmanager
def no_agent(run_dir: Path) -> Iterator[None]:
    """Hold the lock if its file exists. Makes nothing on a node without an agent. Raises CannotRunError if one runs."""
    with agent_lock(run_dir) if (run_dir / _FILE).exists() else nullcontext():
        yield
