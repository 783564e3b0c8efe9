"""Run a program to its end, without what the library's subprocess costs at import: for the few calls that need one."""

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
from nodenet.cni.patience import heed

# Bytes of an answer: a result of CNI has some hundreds.
_MOST = 1 << 20


def run(
    executable: str,
    environment: Mapping[str, str],
    stdin: bytes,
    limit: float,
    words: Sequence[str] = (),
    *,
    quiet: bool = False,
) -> tuple[int, bytes]:
    """Run an executable in this thread's namespaces, to its end or for `limit` seconds; its exit status (negative: the
    signal) and its output. Its standard error is ours, or nobody's with `quiet`.

    Raises CniError: 11 when it did not end and was killed with what it had started, 5 when it cannot be started or says
    too much. Files in memory instead of pipes: no side ever waits for the other, and a child that it leaves behind
    holds nothing up.
    """
    given, said = _memory("stdin"), _memory("stdout")
    try:
        _fill(given, stdin)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, said, 1)]
        if quiet:
            actions.append((os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0))
        try:
            # Python ignores two signals, and threads may block some: a child would inherit that.
            pid = os.posix_spawn(
                executable,
                [executable, *words],
                dict(environment),
                file_actions=actions,
                # A group of its own, so that what it has started can be ended with it.
                setpgroup=0,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
                setsigmask=(),
            )
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"{executable}: {error.strerror}") from error
        status = _wait(executable, pid, said, time.monotonic() + limit)
        size = os.fstat(said).st_size
        if size > _MOST:
            raise CniError(Code.IO_FAILURE, f"{executable}: its answer has {size} bytes")
        return status, os.pread(said, size, 0)
    finally:
        os.close(given)
        os.close(said)


def _wait(executable: str, pid: int, said: int, deadline: float) -> int:
    """The exit status of our own child, which is gone when this returns or raises."""
    ended = False
    try:
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            while not poll.poll(100):
                heed()
                if time.monotonic() > deadline:
                    message = f"{executable}: no answer in time: it was killed"
                    raise CniError(Code.TRY_AGAIN, message)
                if os.fstat(said).st_size > _MOST:
                    raise CniError(Code.IO_FAILURE, f"{executable}: its answer does not end")
        finally:
            os.close(handle)
        ended = True
    finally:
        if not ended:
            # Not reaped yet, so the number is still its own, and its group's.
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
