"""The open watches of the HTTP endpoint, so that somebody else can end them: in order, or with 410 Gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nodenet.lab.apiserver.status import expired as gone


@dataclass(slots=True)
class _Open:
    """`host` is the client's address. `expired`: whether it ends with an ERROR event; None while nobody cut it."""

    task: asyncio.Task[object]
    host: str
    expired: bool | None = None


class Watches:
    """Of all applications of one ApiServer."""

    def __init__(self) -> None:
        self._open: list[_Open] = []

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(self, host: str) -> Iterator[None]:
        """The calling task is a watch while the block runs. A cut ends the block; with a 410 ApiError if so asked."""
        task = asyncio.current_task()
        assert task is not None
        mine = _Open(task, host)
        self._open.append(mine)
        try:
            yield
        except asyncio.CancelledError:
            if mine.expired is None:
                raise
            # It was this watch that was to end, not its task.
            task.uncancel()
            if mine.expired:
                raise gone("too old resource version: the history was compacted") from None
        finally:
            self._open.remove(mine)

    def cut(self, select: Callable[[str], bool], *, expired: bool) -> int:
        """End the watches of the clients that `select` takes by their address; how many there were."""
        found = [each for each in self._open if each.expired is None and select(each.host)]
        for each in found:
            each.expired = expired
            each.task.cancel()
        return len(found)

    def stop(self) -> None:
        """The endpoint ends: so does every watch, at once."""
        for each in self._open:
            each.task.cancel()
