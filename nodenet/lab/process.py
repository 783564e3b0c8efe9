"""Starts processes inside a network namespace and a cgroup, and waits for their end with a pidfd.

A shell enters the cgroup and then executes the program. A socket belongs to the cgroup in which it was created, so
moving the process later would leave its first sockets without the socket programs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nodenet.link import mounts, netns

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ENTER = 'echo $$ >"$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs: the path of a named network namespace, and a cgroup folder.

    `boot_id`: a file that replaces /proc/sys/kernel/random/boot_id for the processes, if the file exists.
    """

    netns: Path
    cgroup: Path
    boot_id: Path | None = None


def in_cgroup(cgroup: Path, argv: Sequence[str]) -> list[str]:
    """An argv that enters the cgroup and then executes `argv` with the same pid."""
    return ["/bin/sh", "-c", _ENTER, str(cgroup / "cgroup.procs"), *argv]


def spawn(
    place: Place,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `argv` in `place`, in a session of its own."""

    def start() -> subprocess.Popen[bytes]:
        if place.boot_id is not None and place.boot_id.exists():
            # The bind mount is in a private mount namespace of this thread, which the child inherits. It still
            # receives later mounts of the host, in particular the namespaces of pods.
            mounts.own(receives=True)
            mounts.bind(place.boot_id, BOOT_ID)
        return subprocess.Popen(
            in_cgroup(place.cgroup, argv),
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    return netns.call(place.netns, start)


async def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end. Returns the exit status (negative: the signal). May be cancelled and called again."""
    if process.poll() is None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
    return process.wait()


async def stop(process: subprocess.Popen[bytes], grace: float) -> int:
    """Send SIGTERM, and SIGKILL after `grace` seconds. Returns the exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(wait(process), grace)
        except TimeoutError:
            process.kill()
    return await wait(process)


async def run(
    place: Place, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, limit: float
) -> tuple[int, bytes, bytes]:
    """Run `argv` to its end. Returns exit status, stdout, stderr. After `limit` seconds it kills the process and raises
    TimeoutError."""

    def body() -> tuple[int, bytes, bytes]:
        pipe = subprocess.PIPE
        process = spawn(place, argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            out, err = process.communicate(stdin, limit)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise TimeoutError(f"{argv[0]}: no answer within {limit:g} s") from error
        return process.returncode, out, err

    return await asyncio.to_thread(body)
