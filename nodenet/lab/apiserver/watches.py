"""The open watches of the HTTP endpoint. They can be ended from outside, normally or with 410 Gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nodenet.lab.apiserver.status import expired as gone


@dataclass(slots=True)
class _Open:
    """`host` is the client's address. `expired`: None until `cut` ends the watch, then True for an end with an ERROR
    event (410)."""

    task: asyncio.Task[object]
    host: str
    expired: bool | None = None


class Watches:
    """The open watches of all applications of one ApiServer."""

    def __init__(self) -> None:
        self._open: list[_Open] = []

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(self, host: str) -> Iterator[None]:
        """Register the calling task as a watch while the block runs. `cut` ends the block, with a 410 ApiError if
        `expired`."""
        task = asyncio.current_task()
        assert task is not None
        mine = _Open(task, host)
        self._open.append(mine)
        try:
            yield
        except asyncio.CancelledError:
            if mine.expired is None:
                raise
            # `cut` cancels the task only to end this block. The task itself must go on.
            task.uncancel()
            if mine.expired:
                raise gone("too old resource version: the history was compacted") from None
        finally:
            self._open.remove(mine)

    def cut(self, select: Callable[[str], bool], *, expired: bool) -> int:
        """End the watches of all clients whose address `select` accepts. Returns how many there were."""
        found = [each for each in self._open if each.expired is None and select(each.host)]
        for each in found:
            each.expired = expired
            each.task.cancel()
        return len(found)

    def stop(self) -> None:
        """End all watches at once, at the end of the endpoint."""
        for each in self._open:
            each.task.cancel()
