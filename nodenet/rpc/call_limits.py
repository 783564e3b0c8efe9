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
        local = is_local(context)
        limit = self._limits[local]
        if self._running[local] >= limit:
            message = f"{self._what}: {limit} of these calls are running, which is the limit; try again later"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._running[local] += 1
        context.add_done_callback(lambda _context: self._running.subtract([local]))


def is_local(context: Any) -> bool:
    """Whether the caller of an RPC uses the unix socket, which only root may open."""
    return bool(context.peer().startswith("unix:"))
