"""Places that clients use at the same time, with a limit for each client: one cannot take all places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Shares:
    """`most`: places in all. `most_of_one`: places of one client, named by its address."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, client: str) -> Iterator[bool]:
        """Take a place until the end of the block. False: there is none for this client now."""
        if self._taken[client] >= self._most_of_one or self._taken.total() >= self._most:
            # Reading a Counter adds no key.
            yield False
            return
        self._taken[client] += 1
        try:
            yield True
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
