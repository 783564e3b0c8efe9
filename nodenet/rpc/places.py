"""How many calls of one kind are served at once. The network's callers cannot take the places of the node's own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc


class Places:
    """Places for calls of one kind: `local` ones for callers on the unix socket, `network` ones for those over TCP."""

    def __init__(self, what: str, local: int, network: int) -> None:
        self._what = what
        self._most = {True: local, False: network}
        self._taken: Counter[bool] = Counter()

    async def take(self, context: Any) -> None:
        """Take a place until the call ends, however it ends. Aborts it with RESOURCE_EXHAUSTED when none is left."""
        is_local = context.peer().startswith("unix:")
        most = self._most[is_local]
        if self._taken[is_local] >= most:
            message = f"{self._what}: {most} of these calls are served already, which is the limit; try again later"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._taken[is_local] += 1
        context.add_done_callback(lambda _context: self._taken.subtract([is_local]))
