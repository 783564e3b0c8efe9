"""The ADDs of an agent's server pass three stages. An ADD that waits occupies no thread.

    queued    the limit of concurrent ADDs is reached: the call is stored, and the thread takes the next call
    wired     a thread wires the pod up to the point where the agent does its part
    waiting   for the agent, on the event loop; then a separate thread replies, or undoes the ADD and replies

So a DEL always finds a thread, however many ADDs there are, and ADDs of pods that the agent never sees do not block
others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from nodenet.cni import sockets
from nodenet.cni.agent import AgentHooks
from nodenet.cni.calls import Call, Plugins, describe
from nodenet.cni.conf import failure
from nodenet.cni.errors import CniError, Code
from nodenet.cni.hooks import Hooks
from nodenet.cni.owner import Owner
from nodenet.cni.plugin import Adding, Plugin
from nodenet.cni.protocol import Reply
from nodenet.endpoint import Endpoint
from nodenet.errors import NodenetError

log = logging.getLogger("nodenet.cni")
# Limit of ADDs that wait for the agent at the same time: each keeps some files open.
_MAX_WAITING = 100
# Threads that finish ADDs: undoing one blocks in the kernel.
_FINISHERS = 4
_STOPPING = "the agent is stopping"
_ITS_DEL = "a DEL for this container arrived"


@dataclass(eq=False, slots=True)
class _Add:
    """One wired ADD. `why` is the reason for aborting it, "" if it is not aborted."""

    call: Call
    plugin: Plugin
    steps: Adding
    endpoint: Endpoint
    why: str = ""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _State:
    """State that the threads share, guarded by the lock. `abandoned`: owners whose DEL arrived while their ADD was
    being wired."""

    queue: deque[Call] = field(default_factory=deque)
    working: list[Owner] = field(default_factory=list)
    abandoned: set[Owner] = field(default_factory=set)
    waiting: dict[Owner, _Add] = field(default_factory=dict)
    refusing: bool = False


class Adds:
    """At most `most` ADDs are wired at the same time. `hooks(call)` returns the hooks of an ADD; `answer(call,
    reply)` finishes a call and never raises."""

    def __init__(
        self,
        most: int,
        agent: AgentHooks,
        plugins: Plugins,
        hooks: Callable[[Call], Hooks],
        answer: Callable[[Call, Reply], None],
    ) -> None:
        self._limit = most
        self._agent = agent
        self._plugins = plugins
        self._hooks = hooks
        self._answer = answer
        self._lock = threading.Condition()
        self._state = _State()
        self._to_finish: SimpleQueue[tuple[_Add, CniError | None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads, in the calling thread's network namespace."""
        self._loop = loop
        self._threads = [threading.Thread(target=self._finish_all, name=f"cni_end_{n}") for n in range(_FINISHERS)]
        for thread in self._threads:
            thread.start()

    def take(self, call: Call) -> None:
        """Wire this ADD and then queued ones in this thread; if the limit is reached, only queue it."""
        with self._lock:
            self._state.queue.append(call)
        self._work()

    def abandon(self, owner: Owner) -> None:
        """Abort the ADD of this owner, because its DEL arrived. The DEL itself waits until the ADD is undone
        (Records.busy)."""
        why = _ITS_DEL
        with self._lock:
            state = self._state
            if owner in state.working:
                state.abandoned.add(owner)
            queued = [call for call in state.queue if call.owner == owner]
            for call in queued:
                state.queue.remove(call)
            waiting = state.waiting.get(owner)
        for call in queued:
            self._refuse(call, why)
        if waiting is not None:
            self._abort(waiting, why)

    def join(self, deadline: Callable[[], float]) -> bool:
        """Wait until all ADDs have finished, at most `deadline()` seconds. Returns True if some have not."""
        with self._lock:
            return not self._lock.wait_for(self._is_idle, deadline())

    def refuse_all(self) -> None:
        """Refuse all ADDs from now on: new, queued and waiting ones."""
        with self._lock:
            state = self._state
            state.refusing = True
            queued, waiting = list(state.queue), list(state.waiting.values())
            state.queue.clear()
        for call in queued:
            self._refuse(call, _STOPPING)
        for add in waiting:
            self._abort(add, _STOPPING)

    def close(self) -> None:
        """End the threads. All ADDs must have finished."""
        for _ in self._threads:
            self._to_finish.put(None)
        for thread in self._threads:
            thread.join()

    def _is_idle(self) -> bool:
        return not (self._state.queue or self._state.working or self._state.waiting)

    def _next(self) -> Call | None:
        """The next call to wire, or None. The call is counted as being wired."""
        with self._lock:
            state = self._state
            if not state.queue or len(state.working) >= self._limit or len(state.waiting) >= _MAX_WAITING:
                return None
            call = state.queue.popleft()
            state.working.append(call.owner)
            return call

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                self._wire(call)
            finally:
                with self._lock:
                    self._state.working.remove(call.owner)
                    # The mark of a DEL applies to all ADDs of the owner that are being wired.
                    if call.owner not in self._state.working:
                        self._state.abandoned.discard(call.owner)
                    self._lock.notify_all()

    def _wire(self, call: Call) -> None:
        """Wire the pod up to the agent's part. Never raises."""
        with self._lock:
            refused = _STOPPING if self._state.refusing else ""
            if call.owner in self._state.waiting:
                refused = "another ADD is working on it"
        if refused:
            self._refuse(call, refused)
            return
        plugin = self._plugins.acquire()
        steps = plugin.adding(call.request, self._hooks(call))
        try:
            wired = next(steps)
        except Exception as error:  # noqa: BLE001 - it becomes the call's answer
            self._plugins.release(plugin)
            self._answer(call, call.failed(error))
            return
        add = _Add(call, plugin, steps, wired.endpoint)
        try:
            self._agent.admit(wired)
        except (NodenetError, OSError) as error:
            message = f"the agent failed with {describe(wired.endpoint)}: {error}"
            self._wait(add, CniError(Code.AGENT_FAILED, message))
        else:
            self._wait(add, None)

    def _wait(self, add: _Add, failed: CniError | None) -> None:
        """Hand the ADD to the event loop, which then passes it to `_finish_all`."""
        assert self._loop is not None
        loop = self._loop
        with self._lock:
            self._state.waiting[add.call.owner] = add
            if self._state.refusing:
                add.why = _STOPPING
            elif add.call.owner in self._state.abandoned:
                add.why = _ITS_DEL

        def begin() -> None:
            add.task = loop.create_task(self._enforce(add, failed))
            add.task.add_done_callback(lambda task: self._to_finish.put((add, self._outcome(add, task))))
            if add.why:
                add.task.cancel()

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError:
            # The event loop is closed, so `begin` will not run.
            self._to_finish.put((add, CniError(Code.TRY_AGAIN, f"{_STOPPING}: {describe(add.endpoint)}")))

    def _abort(self, add: _Add, why: str) -> None:
        assert self._loop is not None

        def cancel() -> None:
            # If there is no task yet, `begin` runs later and checks `why`.
            if add.task is not None:
                add.task.cancel()

        add.why = add.why or why
        self._loop.call_soon_threadsafe(cancel)

    async def _enforce(self, add: _Add, failed: CniError | None) -> None:
        """Do the agent's part completely, or undo it."""
        agent, endpoint = self._agent, add.endpoint
        try:
            if failed:
                raise failed
            async with asyncio.timeout(agent.seconds):
                await agent.on_add(endpoint)
            # If the caller has gone, the runtime's DEL may have finished already, and no ADD may succeed after it.
            sockets.require_caller(add.call.connection)
        except BaseException:
            try:
                async with asyncio.timeout(agent.seconds):
                    await agent.on_del(endpoint)
            except Exception as error:  # noqa: BLE001 - why the ADD failed is what counts
                log.warning("after a failed ADD of %s: %s", endpoint.pod, str(error) or type(error).__name__)
            raise

    def _outcome(self, add: _Add, task: asyncio.Task[None]) -> CniError | None:
        what = describe(add.endpoint)
        if task.cancelled():
            return CniError(Code.TRY_AGAIN, f"{add.why or _STOPPING}: {what}")
        error = task.exception()
        if error is None or isinstance(error, CniError):
            return error
        if isinstance(error, TimeoutError):
            return CniError(Code.TRY_AGAIN, f"the agent was not ready with {what} within {self._agent.seconds:g} s")
        return CniError(Code.AGENT_FAILED, f"the agent failed with {what}: {error}")

    def _finish_all(self) -> None:
        """One thread: reply to ADDs whose wait is over, or undo them and reply."""
        while (ended := self._to_finish.get()) is not None:
            add, error = ended
            try:
                self._finish(add, error)
            finally:
                with self._lock:
                    # `_finish` releases the attachment, so another ADD of it may have taken this place.
                    if self._state.waiting.get(add.call.owner) is add:
                        del self._state.waiting[add.call.owner]
                    self._lock.notify_all()
            self._work()

    def _finish(self, add: _Add, error: CniError | None) -> None:
        try:
            if error is None:
                next(add.steps)
            else:
                add.steps.throw(error)
            raise AssertionError("an ADD has one stop")
        except StopIteration as end:
            reply = Reply(0, end.value.stdout.encode())
        except Exception as problem:  # noqa: BLE001 - it becomes the call's answer
            reply = add.call.failed(problem)
        self._plugins.release(add.plugin)
        self._answer(add.call, reply)

    def _refuse(self, call: Call, why: str) -> None:
        self._answer(call, failure(call.request.stdin, CniError(Code.TRY_AGAIN, why)))
