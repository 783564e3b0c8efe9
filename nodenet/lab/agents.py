"""Supervises the agent process of one node: starts it, restarts it after a crash, and stops it on request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodenet.backoff import Backoff
from nodenet.cni import protocol
from nodenet.errors import BadInputError, CannotRunError
from nodenet.lab import process
from nodenet.lab.clocks import Clock

log = logging.getLogger(__name__)

# Seconds until a crashed agent is restarted. Doubles after each run shorter than _STABLE_AFTER, like the kubelet's
# CrashLoopBackOff.
_BACKOFF_FIRST = 1.0
_BACKOFF_MOST = 30.0
_STABLE_AFTER = 30.0
_GRACE = 5.0
_READY_POLL = 0.05
_ANSWER = 5.0
# Seconds in which an agent with a new configuration must be ready.
_RECONFIGURE = 25.0

VERBS = ("start", "stop", "restart", "kill", "pause", "resume")


class Agent:
    """The supervisor of one agent. `ready` is set while the agent answers requests on its CNI socket.

    `changed` is called after each change of state.
    """

    def __init__(self, node: str, place: process.Place, folder: Path, changed: Callable[[], None]) -> None:
        self.node = node
        self.restarts = 0
        self.last_exit: int | None = None
        self.paused = False
        self.ready = asyncio.Event()
        self.clock = Clock(folder.parent, folder)
        self._place = place
        self._folder = folder
        self._changed = changed
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._skip_backoff = asyncio.Event()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # If the lab ends before its agents are ready, no task awaits this future. Read its exception here, so that
        # asyncio does not log "exception was never retrieved".
        self._first.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else None

    def describe(self) -> dict[str, Any]:
        """The agent's state, for `lab status`."""
        state = "ready" if self.ready.is_set() else "starting" if self.pid else "waiting"
        if self.paused:
            state = "paused"
        return {
            "node": self.node,
            "state": state if self._wanted.is_set() else "stopped",
            "pid": self.pid,
            "restarts": self.restarts,
            "lastExit": self.last_exit,
        }

    async def run(self) -> None:
        """Keep the agent running, except while it is stopped on request. Runs until cancelled."""
        backoff = Backoff(_BACKOFF_FIRST, _BACKOFF_MOST)
        while True:
            await self._wanted.wait()
            await self._run_once()
            if time.monotonic() - self._started_at > _STABLE_AFTER:
                backoff.reset()
            if not self._wanted.is_set():
                continue
            self.restarts += 1
            seconds = backoff.next()
            log.warning("%s: agent ended with %s, starts again in %.0f s", self.node, self.last_exit, seconds)
            self._skip_backoff.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._skip_backoff.wait()
                # An explicit start or restart: forget earlier crashes.
                backoff.reset()

    async def first_ready(self) -> None:
        """Wait until the agent is ready for the first time. Raises CannotRunError with the last line of its log if it
        ends before that."""
        await asyncio.shield(self._first)

    async def act(self, verb: str) -> None:
        """Do one of VERBS. `kill` sends SIGKILL, and the agent is then restarted as after any crash. `pause` sends
        SIGSTOP: the process keeps its sockets open but does not answer. Raises BadInputError."""
        if verb not in VERBS:
            raise BadInputError(f"agent: unknown verb {verb!r}", f"one of {', '.join(VERBS)}")
        if verb == "pause" and self.pid is None:
            raise BadInputError(f"{self.node}: the agent does not run, so it cannot be paused")
        if verb == "pause":
            self._signal(signal.SIGSTOP)
        if verb in ("resume", "stop", "restart"):
            # A stopped process handles SIGTERM only after SIGCONT.
            self._signal(signal.SIGCONT)
        if verb == "stop":
            self._wanted.clear()
        if verb == "kill" and self._process is not None:
            self._process.kill()
        if verb in ("stop", "restart") and self._process is not None:
            await process.stop(self._process, _GRACE)
        if verb in ("start", "restart"):
            self._wanted.set()
            self._skip_backoff.set()

    async def reconfigure(self) -> None:
        """Restart it with a changed configuration, and wait until it is ready; nothing if it is stopped. Raises
        CannotRunError with the last line of its log if it is not ready in time."""
        if not self._wanted.is_set():
            return
        old = self.pid
        await self.act("restart")
        deadline = time.monotonic() + _RECONFIGURE
        while self.pid in (None, old) or not self.ready.is_set():
            if time.monotonic() > deadline:
                raise self._failure()
            await asyncio.sleep(_READY_POLL)

    async def crash(self) -> None:
        """Send SIGKILL, as a power failure would. The agent stays down until `act("start")`."""
        self._wanted.clear()
        if self._process is not None:
            self._process.kill()
            await process.wait(self._process)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)
        self.paused = number is signal.SIGSTOP

    async def _run_once(self) -> None:
        """Start the process and wait for its end."""
        self._started_at = time.monotonic()
        with (self._folder / "agent.log").open("ab") as output:
            self._process = await asyncio.to_thread(
                process.spawn, self._place, command(self._folder), env=self._environment(), stdout=output, stderr=output
            )
        self._changed()
        watcher = asyncio.create_task(self._watch_ready(), name=f"ready {self.node}")
        try:
            self.last_exit = await process.wait(self._process)
        finally:
            watcher.cancel()
            self.paused = False
            self.ready.clear()
            self._changed()
        if not self._first.done():
            self._first.set_exception(self._failure())

    async def _watch_ready(self) -> None:
        while not await _answers(self._folder / "cni.sock"):  # noqa: ASYNC110  another process opens it
            await asyncio.sleep(_READY_POLL)
        log.info("%s: agent ready after %.2f s", self.node, time.monotonic() - self._started_at)
        self.ready.set()
        self._changed()
        if not self._first.done():
            self._first.set_result(None)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1", **self.clock.environment()}

    def _failure(self) -> CannotRunError:
        log_file = self._folder / "agent.log"
        reason = last_line(log_file.read_text(errors="replace"))
        message = f"{self.node}: the agent ended with exit status {self.last_exit}: {reason}"
        return CannotRunError(message)


def last_line(text: str) -> str:
    """The message of a NodenetError if the log ends with one, else the last line of the log."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("nodenet: ") for line in lines[-3:] if line.startswith("nodenet: ")]
    return (errors or lines or ["its log is empty"])[-1]


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "nodenet", "agent", "--config", str(folder / "agent.yaml")]


async def _answers(path: Path) -> bool:
    """True if a process answers a CNI VERSION request on this socket. The agent listens only once it can also do
    ADD."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    try:
        writer.write(protocol.pack_request({"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}'))
        async with asyncio.timeout(_ANSWER):
            return protocol.unpack_reply(await reader.read()).status == 0
    except (OSError, TimeoutError, protocol.ProtocolError):
        return False
    finally:
        writer.close()
