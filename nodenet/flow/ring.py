"""A bounded ring of the newest flows. Writing never blocks: a slow reader gets a Lost in place of overwritten flows.
Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from nodenet.flow.limits import STEPS_PER_READ
from nodenet.flow.types import Flow, Lost, LostSource

# The items of a ring: flows, or the records that a producer made them from.
T = TypeVar("T", Flow, bytes)
# The largest number of items that one `read` examines. Fewer if the filter is expensive, because other tasks run only
# between reads.
READ_SIZE = 512


class Ring(Generic[T]):
    """Keeps the last `capacity` items, with a Lost where some are missing. Places count from 0 and are never reused, so
    a reader's position is one number."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected 1 or more, got {capacity}")
        self.capacity = capacity
        # Total items added, and total flows lost before they reached the ring (in the kernel or in decoding).
        self.seen = 0
        self.lost = 0
        # Flows that readers missed because the ring overwrote them first.
        self.lost_by_readers = 0
        self._items: list[T | Lost | None] = [None] * capacity
        self._end = 0

    def append(self, item: T | Lost) -> None:
        """Add one item. It replaces the oldest one if the ring is full."""
        self._items[self._end % self.capacity] = item
        self._end += 1
        if isinstance(item, Lost):
            self.lost += item.flows
        else:
            self.seen += 1

    def __len__(self) -> int:
        return min(self._end, self.capacity)

    @property
    def end(self) -> int:
        """The place of the next item to be added."""
        return self._end

    @property
    def start(self) -> int:
        """The place of the oldest item in the ring."""
        return max(0, self._end - self.capacity)

    def at(self, place: int) -> T | Lost:
        """The item at a place between `start` and `end`."""
        item = self._items[place % self.capacity]
        if item is None or not self.start <= place < self._end:
            raise IndexError(f"place {place} is not between {self.start} and {self._end}")
        return item

    def newest_first(self) -> Iterator[tuple[int, T | Lost]]:
        """Every item with its place. Do not append while iterating."""
        for place in range(self._end - 1, self.start - 1, -1):
            yield place, self.at(place)


@dataclass(frozen=True, slots=True)
class Query:
    """A reader's request. Times are ns since the epoch, both inclusive. `number` 0: no limit.

    Without `first`, `number` means the newest matching items. With `follow` but neither `number` nor `since`, only
    future items are returned. `steps`: the largest number of comparisons of `matches` for one flow. For records only
    `number`, `first` and `follow` count: the other fields test flows.
    """

    number: int = 0
    first: bool = False
    follow: bool = False
    since: int | None = None
    until: int | None = None
    matches: Callable[[Flow], bool] | None = None
    steps: int = 1

    def wants(self, item: Flow | bytes) -> bool:
        return not isinstance(item, Flow) or self._wants_flow(item)

    def _wants_flow(self, flow: Flow) -> bool:
        if self.since is not None and flow.time < self.since:
            return False
        if self.until is not None and flow.time > self.until:
            return False
        return self.matches is None or self.matches(flow)


class Batch(NamedTuple, Generic[T]):
    """The result of one `read`. `done`: the query is complete."""

    items: list[T | Lost]
    done: bool


class Reader(Generic[T]):
    """Runs one query on the ring. If it wants the newest N items, the reader first searches backwards for the oldest of
    these. Then it reads forward."""

    def __init__(self, ring: Ring[T], query: Query) -> None:
        self._ring: Ring[T] = ring
        self._query = query
        self._size = max(1, min(READ_SIZE, STEPS_PER_READ // max(1, query.steps)))
        self._left = query.number if query.first and query.number else None
        # Without `follow` flows that arrive during the query are not included, so that it ends.
        self._stop = None if query.follow else ring.end
        only_new = query.follow and not query.number and query.since is None
        # Backward search: the number of matching items still to find, and the place where the search continues.
        self._wanted = 0 if only_new or query.first else query.number
        self._back = ring.end
        self._place = ring.end if only_new or self._wanted else ring.start

    @property
    def waiting(self) -> bool:
        """Whether everything in the ring has been read."""
        return not self._wanted and self._place >= self._ring.end

    def read(self) -> Batch[T]:
        """The next matching items, possibly none. Examines at most READ_SIZE items backwards and as many forwards."""
        if self._wanted:
            self._search_back()
            if self._wanted:
                return Batch([], False)
        found: list[T | Lost] = []
        self._skip_lost(found)
        end = self._ring.end if self._stop is None else min(self._stop, self._ring.end)
        stop = min(end, self._place + self._size)
        while self._place < stop and self._left != 0:
            item = self._ring.at(self._place)
            self._place += 1
            if isinstance(item, Lost):
                found.append(item)
            elif self._query.wants(item):
                found.append(item)
                if self._left is not None:
                    self._left -= 1
        return Batch(found, self._left == 0 or (self._stop is not None and self._place >= self._stop))

    def _search_back(self) -> None:
        """Continue the backward search, for one read. The ring may overwrite items between two reads."""
        oldest = self._ring.start
        stop = max(oldest, self._back - self._size)
        while self._back > stop and self._wanted:
            self._back -= 1
            item = self._ring.at(self._back)
            if not isinstance(item, Lost) and self._query.wants(item):
                self._place, self._wanted = self._back, self._wanted - 1
        # Fewer items match than were requested: start with the oldest match found so far.
        if self._back <= oldest:
            self._wanted = 0

    def _skip_lost(self, found: list[T | Lost]) -> None:
        missed = self._ring.start - self._place
        if missed > 0:
            after = self._ring.at(self._ring.start)
            found.append(Lost(LostSource.READER, missed, 0, _time(after)))
            self._ring.lost_by_readers += missed
            self._place = self._ring.start


def _time(item: Flow | bytes | Lost) -> int:
    """ns since the epoch; 0: unknown."""
    if isinstance(item, Flow):
        return item.time
    return item.first if isinstance(item, Lost) else 0
