"""Runs a program without the standard library's subprocess, whose import is expensive and not needed by most calls."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nodenet.cni.errors import CniError, Code
from nodenet.cni.signals import raise_if_signalled

# Largest output in bytes: a CNI result has some hundred.
_MAX_OUTPUT = 1 << 20


def run(
    executable: str,
    environment: Mapping[str, str],
    stdin: bytes,
    limit: float,
    arguments: Sequence[str] = (),
    *,
    quiet: bool = False,
) -> tuple[int, bytes]:
    """Run an executable in this thread's namespaces until it ends, for at most `limit` seconds. Returns its exit status
    (negative: a signal) and its output. It inherits our standard error; with `quiet` its standard error is discarded.

    Raises CniError: code 11 if it did not end in time and was killed together with its process group, code 5 if it
    cannot be started or prints too much. Standard input and output are files in memory instead of pipes: neither side
    ever blocks on the other, and a grandchild that keeps them open does not delay us.
    """
    stdin_fd, stdout_fd = _memory("stdin"), _memory("stdout")
    try:
        _fill(stdin_fd, stdin)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, stdin_fd, 0), (os.POSIX_SPAWN_DUP2, stdout_fd, 1)]
        if quiet:
            actions.append((os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0))
        try:
            # Undo what a child would inherit: two signals that Python ignores, and signals that this thread blocks.
            pid = os.posix_spawn(
                executable,
                [executable, *arguments],
                dict(environment),
                file_actions=actions,
                # In a process group of its own, so that its children can be killed with it.
                setpgroup=0,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
                setsigmask=(),
            )
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"{executable}: {error.strerror}") from error
        status = _wait(executable, pid, stdout_fd, time.monotonic() + limit)
        size = os.fstat(stdout_fd).st_size
        if size > _MAX_OUTPUT:
            raise CniError(Code.IO_FAILURE, f"{executable}: output of {size} bytes, expected at most {_MAX_OUTPUT}")
        return status, os.pread(stdout_fd, size, 0)
    finally:
        os.close(stdin_fd)
        os.close(stdout_fd)


def _wait(executable: str, pid: int, stdout_fd: int, deadline: float) -> int:
    """Wait for our child and return its exit status. The child has ended when this returns or raises."""
    ended = False
    try:
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            while not poll.poll(100):
                raise_if_signalled()
                if time.monotonic() > deadline:
                    message = f"{executable}: not finished in time, so it was killed"
                    raise CniError(Code.TRY_AGAIN, message)
                if os.fstat(stdout_fd).st_size > _MAX_OUTPUT:
                    raise CniError(Code.IO_FAILURE, f"{executable}: its output exceeds {_MAX_OUTPUT} bytes")
        finally:
            os.close(handle)
        ended = True
    finally:
        if not ended:
            # The child is not reaped yet, so its process id and group id cannot belong to another process.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status


def _memory(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def _fill(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, "short write to memory")
    os.lseek(fd, 0, os.SEEK_SET)
