"""The agent's side of the CNI executable: a unix socket, worker threads that run the verbs, and the agent's two hooks.

Several verbs run at once, each in a thread with its own rtnetlink socket; what they share (leases, endpoint files)
is guarded by file locks, which hold against an executable that works alone as well.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from nodenet.cni import protocol
from nodenet.cni.conf import failure
from nodenet.cni.errors import CniError, Code
from nodenet.cni.plugin import Hooks, Plugin, Step, Wired, nothing
from nodenet.cni.podcidrs import Networks
from nodenet.cni.protocol import ProtocolError, Reply
from nodenet.cni.request import Request, parse
from nodenet.errors import CannotRunError, NodenetError
from nodenet.model import Endpoint

Hook = Callable[[Endpoint], Awaitable[None]]
_T = TypeVar("_T")
log = logging.getLogger("nodenet.cni")
# Seconds in which a connection must have sent its whole request.
REQUEST_SECONDS = 10.0
# ADDs that are wired at once. More get in each other's way, at the interpreter's lock and the kernel's for links: with
# eight a burst of 100 took half as long again (python -m perf.cni). DELs wait in the kernel most of the time: they take
# no turns.
_WIRING = 2


class CniServer:
    """Serves the CNI executable on `<run_dir>/cni.sock`.

    `admit(wired)` is called in the worker thread when all is wired and recorded, and then `on_add(endpoint)` awaited,
    before ADD answers: together they put the endpoint's policy in force. What either raises undoes the ADD: a CniError
    keeps its code, a timeout is code 11, anything else code 105;
    then `on_del` is awaited for the same endpoint. `on_del(endpoint)` is awaited when the wires are cut and before the
    addresses go back to the pool; it must accept an endpoint that it does not know. What it raises fails the DEL with
    code 11 or 105, and the runtime tries again. `healthy()` says in a sentence what is wrong with the agent, or "", for
    STATUS. `networks()` gives the node's pod networks, for a configuration without ranges, in a worker thread. Hooks
    have `hook_seconds` each. `done(verb, seconds, failed)` is called after each verb. The verbs work in the network
    namespace of the thread that runs the event loop.
    """

    def __init__(
        self,
        run_dir: Path,
        on_add: Hook,
        on_del: Hook,
        *,
        admit: Callable[[Wired], None] = nothing,
        hook_seconds: float = 30.0,
        workers: int = 16,
        step: Step = lambda name: None,
        healthy: Callable[[], Awaitable[str]] | None = None,
        networks: Networks | None = None,
        done: Callable[[str, float, bool], None] = lambda verb, seconds, failed: None,
    ) -> None:
        self.path = run_dir / "cni.sock"
        self._run_dir = run_dir
        self._admit, self._on_add, self._on_del = admit, on_add, on_del
        self._hook_seconds = hook_seconds
        self._step = step
        self._on_health = healthy
        self._done = done
        turns = threading.BoundedSemaphore(_WIRING)
        self._hook_set = Hooks(self._enforce, self._forget, self._healthy, networks, turn=lambda: turns)
        self._workers = workers
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="cni")
        self._local = threading.local()
        self._calls: set[asyncio.Task[None]] = set()
        self._hooks: set[concurrent.futures.Future[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen. Raises CannotRunError when another agent listens there already, OSError as bind does."""
        self._loop = asyncio.get_running_loop()
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        if await asyncio.to_thread(_somebody_listens, self.path):
            raise CannotRunError(f"{self.path}: another agent of this node listens there", "stop it first")
        # Bound under another name and moved: no caller ever meets a socket without listener or with wide permissions.
        temporary = self.path.with_name(f".cni.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(temporary))
            temporary.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._accepted, sock=sock, backlog=512)
            temporary.rename(self.path)
        except BaseException:
            sock.close()
            temporary.unlink(missing_ok=True)
            raise

    async def close(self, grace: float = 5.0) -> None:
        """Stop listening, let the calls at work end within `grace` seconds, and remove the socket."""
        if self._server is not None:
            self.path.unlink(missing_ok=True)
            self._server.close()
            self._server = None
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=grace)
            for call in late:
                call.cancel()
            for hook in list(self._hooks):
                hook.cancel()
        await asyncio.to_thread(self._close_workers)

    def _close_workers(self) -> None:
        """Each worker closes its own netlink socket: the barrier makes every thread take one of the calls."""
        barrier = threading.Barrier(self._workers)

        def close() -> None:
            try:
                barrier.wait(timeout=5)
            except threading.BrokenBarrierError:
                log.warning("a CNI worker is still at work: its socket closes with the process")
            plugin: Plugin | None = getattr(self._local, "plugin", None)
            if plugin is not None:
                plugin.close()

        for _ in range(self._workers):
            self._pool.submit(close)
        self._pool.shutdown(wait=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            reply = await self._serve(reader)
            writer.write(protocol.pack_reply(reply))
            await writer.drain()
        except (ConnectionError, TimeoutError, ProtocolError) as error:
            log.warning("CNI call ended early: %s", error)
        finally:
            self._calls.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader) -> Reply:
        async with asyncio.timeout(REQUEST_SECONDS):
            environment, stdin = await _read_request(reader)
        try:
            request = parse(environment, stdin)
        except CniError as error:
            return failure(stdin, error)
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        reply = await loop.run_in_executor(self._pool, self._work, request)
        seconds = time.monotonic() - started
        self._done(request.verb, seconds, reply.status != 0)
        who = f"{request.verb} {request.container_id} {request.ifname} {request.pod}"
        if reply.status == 0:
            log.info("%s: done in %.1f ms", who, seconds * 1e3)
        else:
            log.warning("%s: %s", who, reply.stdout.decode(errors="replace"))
        return reply

    def _work(self, request: Request) -> Reply:
        """In a worker thread: one verb, with the hooks. Never raises."""
        try:
            plugin = self._plugin()
            return plugin.run(request, self._hook_set)
        except Exception as error:
            log.exception("%s %s %s failed", request.verb, request.container_id, request.ifname)
            return failure(request.stdin, CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"))

    def _plugin(self) -> Plugin:
        plugin: Plugin | None = getattr(self._local, "plugin", None)
        if plugin is None:
            plugin = self._local.plugin = Plugin(self._run_dir, self._step)
        return plugin

    def _enforce(self, wired: Wired) -> None:
        endpoint = wired.endpoint
        try:
            try:
                self._admit(wired)
            except (NodenetError, OSError) as error:
                raise CniError(Code.AGENT_FAILED, f"the agent failed with {_words(endpoint)}: {error}") from error
            self._await_hook(self._on_add, endpoint)
        except CniError:
            try:
                self._await_hook(self._on_del, endpoint)
            except CniError as error:
                log.warning("after a failed ADD of %s: %s", endpoint.pod, error)
            raise

    def _forget(self, endpoint: Endpoint) -> None:
        self._await_hook(self._on_del, endpoint)

    def _healthy(self) -> str:
        return self._await(self._on_health, "the agent's health") if self._on_health else ""

    def _await_hook(self, hook: Hook, endpoint: Endpoint) -> None:
        self._await(lambda: hook(endpoint), _words(endpoint))

    def _await(self, hook: Callable[[], Awaitable[_T]], what: str) -> _T:
        """Run a hook on the event loop and wait for it. Raises CniError alone."""
        assert self._loop is not None

        async def run() -> _T:
            async with asyncio.timeout(self._hook_seconds):
                return await hook()

        call = run()
        try:
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError as error:
            call.close()
            raise CniError(Code.TRY_AGAIN, f"the agent is stopping: {what}") from error
        self._hooks.add(future)
        try:
            # The second limit is for a loop that has stopped turning.
            return future.result(self._hook_seconds + 5)
        except CniError:
            raise
        except TimeoutError as error:
            message = f"the agent was not ready with {what} within {self._hook_seconds:g} s"
            raise CniError(Code.TRY_AGAIN, message) from error
        except concurrent.futures.CancelledError as error:
            raise CniError(Code.TRY_AGAIN, f"the agent is stopping: {what}") from error
        except Exception as error:
            raise CniError(Code.AGENT_FAILED, f"the agent failed with {what}: {error}") from error
        finally:
            self._hooks.discard(future)


def _words(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.endpoint_id} of {endpoint.pod if endpoint.pod.name else endpoint.container_id}"


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


async def _read_request(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    """Environment and stdin of one request. Raises ProtocolError."""
    try:
        if (magic := await reader.readexactly(4)) != protocol.REQUEST_MAGIC:
            raise ProtocolError(f"expected {protocol.REQUEST_MAGIC!r}, got {magic!r}")
        environment = await _block(reader, protocol.MAX_ENVIRONMENT, "environment")
        stdin = await _block(reader, protocol.MAX_STDIN, "stdin")
    except asyncio.IncompleteReadError as error:
        raise ProtocolError("the request was cut off") from error
    return protocol.unpack_environment(environment), stdin


async def _block(reader: asyncio.StreamReader, limit: int, what: str) -> bytes:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    if length > limit:
        raise ProtocolError(f"{what} of {length} bytes is over {limit}")
    return await reader.readexactly(length)
