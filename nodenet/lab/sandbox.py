"""A pod's sandbox: its network namespace, its cgroup and the stand-in server that runs in both."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nodenet.errors import CannotRunError
from nodenet.lab import groups, names, process
from nodenet.lab.pods import Port
from nodenet.link import cgroups, netns

log = logging.getLogger(__name__)

# -I -S -E: no environment variables and no site packages, so Python starts in 20 ms and stays small.
PYTHON = (sys.executable, "-I", "-S", "-E")
STAND_IN = (*PYTHON, str(Path(__file__).with_name("standin.py")))
# The stand-in gets none of the pod's variables, because it is a program of the host and starts as root. They could
# choose the libraries that the dynamic linker loads, and what the shell that enters the cgroup runs first.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# Seconds that a stand-in has to open its ports, and to end. Another program may wait for the API first.
_START = 10.0
_OTHER_START = 20.0
_STOP = 2.0


class Sandbox:
    """One pod's sandbox. `create` makes it. A hostNetwork pod uses the node's namespace and has only a cgroup."""

    def __init__(self, lab: str, node: str, ref: tuple[str, str], *, host_network: bool) -> None:
        name = names.node_netns(lab, node) if host_network else names.pod_netns(lab, *ref)
        self.netns = names.netns_path(name)
        self.host_network = host_network
        self.container_id = secrets.token_hex(32)
        self._name = ref[1]
        self._cgroup = groups.pod_group(lab, node, *ref)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> process.Place:
        return process.Place(self.netns, self._cgroup)

    def create(self) -> None:
        """Create namespace and cgroup. Idempotent, because it is called again after a failed ADD."""
        cgroups.make(self._cgroup)
        if not self.host_network and not netns.exists(self.netns):
            netns.create(self.netns)

    async def start(self, ports: Sequence[Port], program: Sequence[str] = STAND_IN) -> subprocess.Popen[bytes]:
        """Start the pod's program and wait until it serves all ports. Raises CannotRunError with its error message."""
        read, write = os.pipe()
        argv = [*program, "--name", self._name, "--ready-fd", str(write)]
        for port in ports:
            argv += ["--port", str(port)]
        try:
            self._server = await asyncio.to_thread(process.spawn, self.place, argv, env=ENVIRONMENT, pass_fds=(write,))
        finally:
            os.close(write)
        report = await _line(read, _START if program == STAND_IN else _OTHER_START)
        if not report.startswith("ready"):
            raise CannotRunError(report or f"the stand-in ended with exit status {await process.wait(self._server)}")
        for note in report.split("; ")[1:]:
            log.warning("%s: %s", self._name, note)
        return self._server

    async def stop(self) -> None:
        if self._server is not None:
            await process.stop(self._server, _STOP)

    def remove(self) -> None:
        """Kill the remaining processes of the cgroup (of `lab exec`), then remove cgroup and namespace. Idempotent."""
        cgroups.remove(self._cgroup)
        if not self.host_network:
            netns.delete(self.netns)


async def _line(fd: int, seconds: float) -> str:
    """Read one line from a pipe and close it. Returns "" at end of file, or an error message after so many seconds."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(fd, "rb", buffering=0)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        async with asyncio.timeout(seconds):
            return (await reader.readline()).decode().strip()
    except TimeoutError:
        return f"error: the pod's program has not opened its ports within {seconds:g} s"
    finally:
        transport.close()
