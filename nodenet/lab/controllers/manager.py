"""How controllers run: watch events name keys, keys are coalesced, one worker per controller looks at each again.

A controller reads the present state from the API, never from an event, so it may be asked too often and does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

from nodenet.backoff import Backoff
from nodenet.lab.apiserver.client import LocalClient
from nodenet.lab.apiserver.status import ApiError

Obj = dict[str, Any]
_log = logging.getLogger(__name__)
# Seconds before a key that failed is looked at again: doubled each time, up to the last.
_FIRST_RETRY, _LAST_RETRY = 0.05, 5.0


class Controller(ABC):
    """`kinds` are watched; `delay` in seconds gathers a burst of events into one look (0: what is there already)."""

    kinds: ClassVar[tuple[str, ...]]
    delay: ClassVar[float] = 0.0

    @abstractmethod
    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Hashable]:
        """What to look at again after a change. `new` None: deleted; `old` None: new."""

    @abstractmethod
    async def sync(self, key: Any) -> None:
        """Make it so. ApiError: tried again later."""


class Worker:
    """One controller's queue: a set of keys in order of arrival."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._keys: dict[Hashable, None] = {}
        self._failing: dict[Hashable, Backoff] = {}
        self._wake = asyncio.Event()

    def add(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._keys[key] = None
            self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.controller.delay)
            while self._keys:
                key = next(iter(self._keys))
                del self._keys[key]
                await self._sync(key)
                # Others' turn: syncs of this controller may never pause by themselves.
                await asyncio.sleep(0)
            self._wake.clear()

    async def _sync(self, key: Hashable) -> None:
        try:
            await self.controller.sync(key)
        except ApiError as error:
            # 404 and 409: the object changed meanwhile; 403: its namespace is going away. Their own events tell too.
            level = logging.DEBUG if error.code in (403, 404, 409) else logging.WARNING
            _log.log(level, "%s %s: %s", type(self.controller).__name__, key, error)
            self._again(key)
        except Exception:  # noqa: BLE001 - the loop: one object that cannot be handled must not stop all others
            _log.exception("%s %s: not handled", type(self.controller).__name__, key)
            self._again(key)
        else:
            self._failing.pop(key, None)

    def _again(self, key: Hashable) -> None:
        backoff = self._failing.setdefault(key, Backoff(_FIRST_RETRY, _LAST_RETRY))
        asyncio.get_running_loop().call_later(backoff.next(), self.add, (key,))


class Manager:
    """Runs controllers on one watch per kind."""

    def __init__(self, client: LocalClient, controllers: Sequence[Controller]) -> None:
        self._client = client
        self._workers = [Worker(controller) for controller in controllers]

    async def run(self) -> None:
        """Until cancelled."""
        kinds = dict.fromkeys(kind for worker in self._workers for kind in worker.controller.kinds)
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(worker.run(), name=type(worker.controller).__name__)
            for kind in kinds:
                group.create_task(self._watch(kind), name=f"watch {kind}")

    async def _watch(self, kind: str) -> None:
        async for change in self._client.follow(kind):
            self._tell(kind, change.old, change.new)

    def _tell(self, kind: str, old: Obj | None, new: Obj | None) -> None:
        for worker in self._workers:
            if kind in worker.controller.kinds:
                worker.add(worker.controller.keys(kind, old, new))
