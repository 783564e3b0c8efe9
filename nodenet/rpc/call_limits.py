"""Limits the number of concurrent calls of one kind. Callers from the network have a separate limit, so that they
cannot block local ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc


class CallLimit:
    """Counts calls of one kind. `local` is the limit for callers on the unix socket, `network` the limit for TCP."""

    def __init__(self, what: str, local: int, network: int) -> None:
        self._what = what
        self._limits = {True: local, False: network}
        self._running: Counter[bool] = Counter()

    async def acquire(self, context: Any) -> None:
        """Take a place until the call ends, with or without an error. Aborts the call with RESOURCE_EXHAUSTED if none
        is free."""
        is_local = context.peer().startswith("unix:")
        limit = self._limits[is_local]
        if self._running[is_local] >= limit:
            message = f"{self._what}: {limit} of these calls are running, which is the limit; try again later"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._running[is_local] += 1
        context.add_done_callback(lambda _context: self._running.subtract([is_local]))
