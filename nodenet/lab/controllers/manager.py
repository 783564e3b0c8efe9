"""Runs controllers: watch events yield keys, duplicate keys are merged, and one worker per controller syncs each key.

A controller reads the current state from the API, never from an event, so extra syncs do no harm.
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
# Seconds before the next sync of a key that failed. They double after each failure, up to the maximum.
_FIRST_RETRY, _LAST_RETRY = 0.05, 5.0


class Controller(ABC):
    """`kinds` are watched. `delay`: seconds to collect a burst of events into one sync; 0 merges only the events that
    have already arrived."""

    kinds: ClassVar[tuple[str, ...]]
    delay: ClassVar[float] = 0.0

    @abstractmethod
    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[Hashable]:
        """The keys to sync after a change. `new` None: the object was deleted. `old` None: it is new."""

    @abstractmethod
    async def sync(self, key: Any) -> None:
        """Bring the objects of a key to the wanted state. An ApiError causes a retry."""


class Worker:
    """The queue of one controller: a set of keys in the order of their arrival."""

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
                # Let other tasks run. It is possible that no sync suspends; without this, a long queue would block the
                # event loop.
                await asyncio.sleep(0)
            self._wake.clear()

    async def _sync(self, key: Hashable) -> None:
        try:
            await self.controller.sync(key)
        except ApiError as error:
            # Expected errors, logged only at debug level. 404, 409: the object changed in the meantime. 403: its
            # namespace is being deleted.
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
            self._notify(kind, change.old, change.new)

    def _notify(self, kind: str, old: Obj | None, new: Obj | None) -> None:
        for worker in self._workers:
            if kind in worker.controller.kinds:
                worker.add(worker.controller.keys(kind, old, new))
