"""The agent's server for the CNI executable: a unix socket, worker threads, and the agent's hooks.

Each thread accepts a call, runs the verb with its own rtnetlink socket, and replies. No event loop is in this path,
because the start of a pod would wait for it. ADDs, which may wait for the agent, are in adds.py. File locks guard
shared state (leases, endpoint files), because an executable that runs without the agent uses it too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nodenet.cni import protocol, sockets
from nodenet.cni.adds import Adds
from nodenet.cni.agent import AgentHooks
from nodenet.cni.attach import Step
from nodenet.cni.calls import Call, Plugins, describe
from nodenet.cni.conf import failure
from nodenet.cni.errors import CniError, Code
from nodenet.cni.hooks import Hooks
from nodenet.cni.plugin import Plugin
from nodenet.cni.protocol import ProtocolError, Reply
from nodenet.cni.request import Request, parse
from nodenet.endpoint import Endpoint
from nodenet.errors import CannotRunError

_T = TypeVar("_T")
log = logging.getLogger("nodenet.cni")
# Seconds within which a connection must send its whole request.
REQUEST_SECONDS = 10.0
# Callers that may wait for a thread (listen backlog).
_BACKLOG = 512
# Bytes per read.
_CHUNK = 1 << 16
# Seconds between two attempts to accept a call without free file descriptors, and to end the server.
_RETRY_SECONDS = 0.1
# Seconds between two log messages about calls that cannot be accepted.
_LOG_INTERVAL_SECONDS = 10.0
# ADDs that are wired at the same time. More of them contend for the interpreter's lock and the kernel's RTNL lock: with
# eight, a burst of 100 took half as long again (python -m perf.cni). DELs are not limited, because they spend most of
# their time waiting in the kernel.
_MAX_WIRING = 2
# Threads that are reserved for DEL and other verbs.
_RESERVED_THREADS = 4


class CniServer:
    """Serves the CNI executable on `<run_dir>/cni.sock`.

    The verbs work in the network namespace of the thread that calls `start`. `workers`: the number of threads that
    accept calls.
    """

    def __init__(
        self,
        run_dir: Path,
        agent: AgentHooks,
        *,
        workers: int = 16,
        step: Step = lambda name: None,
    ) -> None:
        self.path = run_dir / "cni.sock"
        self._run_dir = run_dir
        self._agent = agent
        turns = threading.BoundedSemaphore(_MAX_WIRING)
        self._hook_set = Hooks(self._forget, self._healthy, agent.networks, agent.mtu, turn=lambda: turns)
        self._workers = workers
        self._plugins = Plugins(lambda: Plugin(run_dir, step))
        most = max(1, workers - _RESERVED_THREADS)
        self._adds = Adds(most, agent, self._plugins, self._hooks_of, self._answer)
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        # Both are set once. Closing: read only what has already arrived. Refusing: also reject calls that are not
        # finished.
        self._closing = self._refusing = False
        self._logged_at = -_LOG_INTERVAL_SECONDS
        self._hooks: set[concurrent.futures.Future[Any]] = set()
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Start to listen. Raises CannotRunError if another agent listens there already, OSError as bind does."""
        self._loop = asyncio.get_running_loop()
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        if await asyncio.to_thread(sockets.has_listener, self.path):
            raise CannotRunError(f"{self.path}: another agent of this node listens there", "stop it first")
        sock = sockets.listen(self.path, _BACKLOG)
        self._listener = sock
        self._adds.start(self._loop)
        self._threads = [
            threading.Thread(target=self._accept_calls, args=(sock,), name=f"cni_{number}")
            for number in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    async def close(self, grace: float = 5.0) -> None:
        """Stop listening, let running calls finish within `grace` seconds, and remove the socket. Calls that still
        wait after that, for a hook or their turn, are rejected with code 11, and their ADDs are undone."""
        if self._listener is None:
            return
        self._closing = True
        self.path.unlink(missing_ok=True)
        # Wakes the threads that wait in accept(). Threads that wait for the rest of a request then read its end.
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._open):
            sockets.end_request(connection)
        late = await asyncio.to_thread(self._join, grace)
        self._refusing = True
        # A thread may have started a hook or an ADD just before, so repeat until all have stopped.
        while late:
            self._adds.refuse_all()
            for hook in list(self._hooks):
                hook.cancel()
            late = await asyncio.to_thread(self._join, _RETRY_SECONDS)
        await asyncio.to_thread(self._adds.close)
        self._plugins.close()
        self._listener.close()
        self._listener = None

    def _join(self, seconds: float) -> bool:
        """Wait for the threads and the ADDs. Returns True if any is still running."""
        deadline = time.monotonic() + seconds

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        for thread in self._threads:
            thread.join(left())
        return any(thread.is_alive() for thread in self._threads) | self._adds.join(left)

    def _accept_calls(self, listener: socket.socket) -> None:
        """The loop of one thread, until the listener is shut down."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                # The listener was shut down.
                if error.errno == errno.EINVAL:
                    return
                self._log_rejected(error)
                time.sleep(_RETRY_SECONDS)
                continue
            self._open.add(connection)
            if self._closing:
                sockets.end_request(connection)
            try:
                self._serve(connection)
            except Exception:
                log.exception("a CNI call failed")

    def _log_rejected(self, error: OSError) -> None:
        """Log the error, at most once per _LOG_INTERVAL_SECONDS for all threads."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_SECONDS:
            self._logged_at = now
            log.error("CNI calls cannot be accepted: %s", error)

    def _serve(self, connection: socket.socket) -> None:
        """Run one call. An ADD may continue after this returns."""
        request = self._receive(connection)
        if request is None:
            self._close(connection)
            return
        call = Call(connection, request)
        if request.verb == "ADD":
            self._adds.take(call)
            return
        if request.verb == "DEL":
            self._adds.abandon(call.owner)
        self._answer(call, self._work(call))

    def _receive(self, connection: socket.socket) -> Request | None:
        """The request; None if it was invalid or incomplete."""
        deadline = time.monotonic() + REQUEST_SECONDS

        def receive() -> bytes:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            return connection.recv(_CHUNK)

        try:
            environment, stdin = protocol.read_request(receive)
            try:
                return parse(environment, stdin)
            except CniError as error:
                sockets.send(connection, REQUEST_SECONDS, failure(stdin, error))
        except (OSError, ProtocolError) as error:
            log.warning("CNI call ended early: %s", error)
        return None

    def _answer(self, call: Call, reply: Reply) -> None:
        """Reply to a call and finish it. Never raises, because the thread must take the next call."""
        seconds = time.monotonic() - call.began
        try:
            sockets.send(call.connection, REQUEST_SECONDS, reply)
        except OSError as error:
            log.warning("CNI call ended early: %s", error)
        try:
            # Count it even if the caller has gone: the verb was executed.
            self._report(call.request, reply, seconds)
        except Exception:
            log.exception("a CNI call could not be counted")
        self._close(call.connection)

    def _close(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        connection.close()

    def _report(self, request: Request, reply: Reply, seconds: float) -> None:
        """Count and log a call, after the reply: the start of a pod must not wait for a log."""
        self._agent.done(request.verb, seconds, reply.status != 0)
        who = f"{request.verb} {request.container_id} {request.ifname} {request.pod}"
        if reply.status == 0:
            log.info("%s: done in %.1f ms", who, seconds * 1e3)
        else:
            log.warning("%s: %s", who, reply.stdout.decode(errors="replace"))

    def _work(self, call: Call) -> Reply:
        """Run a verb other than ADD, with the hooks. Never raises."""
        if self._refusing:
            return failure(call.request.stdin, CniError(Code.TRY_AGAIN, "the agent is stopping"))
        plugin = self._plugins.acquire()
        try:
            return plugin.run(call.request, self._hooks_of(call))
        except Exception as error:  # noqa: BLE001 - it becomes the call's answer
            return call.failed(error)
        finally:
            self._plugins.release(plugin)

    def _hooks_of(self, call: Call) -> Hooks:
        def require_wanted() -> None:
            sockets.require_caller(call.connection)
            self._agent.expected(call.request)

        return replace(self._hook_set, require_wanted=require_wanted)

    def _forget(self, endpoint: Endpoint) -> None:
        self._await(lambda: self._agent.on_del(endpoint), describe(endpoint))

    def _healthy(self) -> str:
        healthy = self._agent.healthy
        return self._await(healthy, "the agent's health") if healthy else ""

    def _await(self, hook: Callable[[], Awaitable[_T]], what: str) -> _T:
        """Run a hook on the event loop and wait for it. Raises only CniError."""
        assert self._loop is not None
        if self._refusing:
            raise CniError(Code.TRY_AGAIN, f"the agent is stopping: {what}")

        async def run() -> _T:
            async with asyncio.timeout(self._agent.seconds):
                return await hook()

        call = run()
        try:
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError as error:
            call.close()
            raise CniError(Code.TRY_AGAIN, f"the agent is stopping: {what}") from error
        self._hooks.add(future)
        try:
            # This second limit applies if the event loop is blocked.
            return future.result(self._agent.seconds + 5)
        except CniError:
            raise
        except TimeoutError as error:
            # If the loop is blocked, the hook must not start later, when this call has already failed.
            future.cancel()
            message = f"the agent was not ready with {what} within {self._agent.seconds:g} s"
            raise CniError(Code.TRY_AGAIN, message) from error
        except concurrent.futures.CancelledError as error:
            raise CniError(Code.TRY_AGAIN, f"the agent is stopping: {what}") from error
        except Exception as error:
            raise CniError(Code.AGENT_FAILED, f"the agent failed with {what}: {error}") from error
        finally:
            self._hooks.discard(future)
