"""The ADDs of an agent's server, on their way through three stages. None holds a thread while it waits.

    queued    as many are at work as may be: the call is kept, and the thread takes the next one
    wired     by a thread, up to where the agent has to do its part
    waiting   for the agent, on the event loop; then one of a few threads of their own ends it: answer, or undo

So a DEL finds a thread however many ADDs there are, and pods that nobody will ever see hold up no others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from nodenet.cni import sockets
from nodenet.cni.calls import Call, Plugins, words
from nodenet.cni.conf import failure
from nodenet.cni.errors import CniError, Code
from nodenet.cni.hooks import Hooks, Wired
from nodenet.cni.owner import Owner
from nodenet.cni.plugin import Adding, Plugin
from nodenet.cni.protocol import Reply
from nodenet.endpoint import Endpoint
from nodenet.errors import NodenetError

log = logging.getLogger("nodenet.cni")
# ADDs that wait for the agent at once: each keeps some files open.
_MOST_WAITING = 100
# Threads that end ADDs: an undo waits for the kernel.
_ENDING = 4
_STOPPING = "the agent is stopping"
_ITS_DEL = "its DEL has come"


@dataclass(eq=False, slots=True)
class _Add:
    """One ADD that is wired. `why` says why it is to be given up, "" while it is not."""

    call: Call
    plugin: Plugin
    steps: Adding
    endpoint: Endpoint
    why: str = ""
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent's part of an ADD: see CniServer."""

    admit: Callable[[Wired], None]
    on_add: Callable[[Endpoint], Awaitable[None]]
    on_del: Callable[[Endpoint], Awaitable[None]]
    seconds: float


@dataclass(slots=True)
class _State:
    """What the threads share, under the lock. `abandoned` are those at work whose DEL has come."""

    queue: deque[Call] = field(default_factory=deque)
    working: list[Owner] = field(default_factory=list)
    abandoned: set[Owner] = field(default_factory=set)
    waiting: dict[Owner, _Add] = field(default_factory=dict)
    refusing: bool = False


class Adds:
    """`most` are at work at once. `hooks(call)` gives an ADD's hooks; `answer(call, reply)` ends a call and never
    raises."""

    def __init__(
        self,
        most: int,
        agent: Agent,
        plugins: Plugins,
        hooks: Callable[[Call], Hooks],
        answer: Callable[[Call, Reply], None],
    ) -> None:
        self._most = most
        self._agent = agent
        self._plugins = plugins
        self._hooks = hooks
        self._answer = answer
        self._lock = threading.Condition()
        self._state = _State()
        self._ended: SimpleQueue[tuple[_Add, CniError | None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """The threads work in the calling thread's network namespace."""
        self._loop = loop
        self._threads = [threading.Thread(target=self._end_all, name=f"cni_end_{n}") for n in range(_ENDING)]
        for thread in self._threads:
            thread.start()

    def take(self, call: Call) -> None:
        """Wire it in this thread, and those that have queued meanwhile; or queue it."""
        with self._lock:
            self._state.queue.append(call)
        self._work()

    def abandon(self, owner: Owner) -> None:
        """A DEL is here: its runtime has given up an ADD that is under way. The DEL itself waits until that is undone
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
            self._give_up(waiting, why)

    def join(self, deadline: Callable[[], float]) -> bool:
        """Wait until all have ended, `deadline()` seconds at most; whether one has not."""
        with self._lock:
            return not self._lock.wait_for(self._is_idle, deadline())

    def refuse_all(self) -> None:
        """From now on all are refused: those that come, that are queued, and that wait."""
        with self._lock:
            state = self._state
            state.refusing = True
            queued, waiting = list(state.queue), list(state.waiting.values())
            state.queue.clear()
        for call in queued:
            self._refuse(call, _STOPPING)
        for add in waiting:
            self._give_up(add, _STOPPING)

    def close(self) -> None:
        """End the threads; no ADD may be left."""
        for _ in self._threads:
            self._ended.put(None)
        for thread in self._threads:
            thread.join()

    def _is_idle(self) -> bool:
        return not (self._state.queue or self._state.working or self._state.waiting)

    def _next(self) -> Call | None:
        """The next call to wire, counted as one that is at work."""
        with self._lock:
            state = self._state
            if not state.queue or len(state.working) >= self._most or len(state.waiting) >= _MOST_WAITING:
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
                    if call.owner not in self._state.working:
                        self._state.abandoned.discard(call.owner)
                    self._lock.notify_all()

    def _wire(self, call: Call) -> None:
        """Up to where the agent's part begins. Never raises."""
        with self._lock:
            refused = _STOPPING if self._state.refusing else ""
            if call.owner in self._state.waiting:
                refused = "another ADD is working on it"
        if refused:
            self._refuse(call, refused)
            return
        plugin = self._plugins.take()
        steps = plugin.adding(call.request, self._hooks(call))
        try:
            wired = next(steps)
        except Exception as error:  # noqa: BLE001 - it becomes the call's answer
            self._plugins.give(plugin)
            self._answer(call, call.failed(error))
            return
        add = _Add(call, plugin, steps, wired.endpoint)
        try:
            self._agent.admit(wired)
        except (NodenetError, OSError) as error:
            message = f"the agent failed with {words(wired.endpoint)}: {error}"
            self._wait(add, CniError(Code.AGENT_FAILED, message))
        else:
            self._wait(add, None)

    def _wait(self, add: _Add, failed: CniError | None) -> None:
        """Hand it to the event loop; from there it comes to `_end_all`."""
        assert self._loop is not None
        loop = self._loop
        with self._lock:
            self._state.waiting[add.call.owner] = add
            if self._state.refusing:
                add.why = _STOPPING
            elif add.call.owner in self._state.abandoned:
                add.why = _ITS_DEL

        def begin() -> None:
            add.task = loop.create_task(self._enforced(add, failed))
            add.task.add_done_callback(lambda task: self._ended.put((add, self._outcome(add, task))))
            if add.why:
                add.task.cancel()

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError:
            self._ended.put((add, CniError(Code.TRY_AGAIN, f"{_STOPPING}: {words(add.endpoint)}")))

    def _give_up(self, add: _Add, why: str) -> None:
        assert self._loop is not None

        def cancel() -> None:
            # Without a task `begin` comes after this, and looks at `why`.
            if add.task is not None:
                add.task.cancel()

        add.why = add.why or why
        self._loop.call_soon_threadsafe(cancel)

    async def _enforced(self, add: _Add, failed: CniError | None) -> None:
        """The agent's part: all of it, or none."""
        agent, endpoint = self._agent, add.endpoint
        try:
            if failed:
                raise failed
            async with asyncio.timeout(agent.seconds):
                await agent.on_add(endpoint)
            # Its runtime's DEL may be over: nothing may come after that.
            sockets.require_caller(add.call.connection)
        except BaseException:
            try:
                async with asyncio.timeout(agent.seconds):
                    await agent.on_del(endpoint)
            except Exception as error:  # noqa: BLE001 - why the ADD failed is what counts
                log.warning("after a failed ADD of %s: %s", endpoint.pod, str(error) or type(error).__name__)
            raise

    def _outcome(self, add: _Add, task: asyncio.Task[None]) -> CniError | None:
        what = words(add.endpoint)
        if task.cancelled():
            return CniError(Code.TRY_AGAIN, f"{add.why or _STOPPING}: {what}")
        error = task.exception()
        if error is None or isinstance(error, CniError):
            return error
        if isinstance(error, TimeoutError):
            return CniError(Code.TRY_AGAIN, f"the agent was not ready with {what} within {self._agent.seconds:g} s")
        return CniError(Code.AGENT_FAILED, f"the agent failed with {what}: {error}")

    def _end_all(self) -> None:
        """One thread: what has been waited for is answered, or undone and answered."""
        while (ended := self._ended.get()) is not None:
            add, error = ended
            try:
                self._end(add, error)
            finally:
                with self._lock:
                    # Once its files are closed, another ADD of the same attachment may have come this far.
                    if self._state.waiting.get(add.call.owner) is add:
                        del self._state.waiting[add.call.owner]
                    self._lock.notify_all()
            self._work()

    def _end(self, add: _Add, error: CniError | None) -> None:
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
        self._plugins.give(add.plugin)
        self._answer(add.call, reply)

    def _refuse(self, call: Call, why: str) -> None:
        self._answer(call, failure(call.request.stdin, CniError(Code.TRY_AGAIN, why)))
