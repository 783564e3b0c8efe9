"""Merges the flows of several agents into one stream, sorted by time."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any

from nodenet.cli.target import Target
from nodenet.errors import NodenetError
from nodenet.rpc.client import Client

# Seconds that a flow is held back with --follow, because earlier flows of other nodes may still arrive.
REORDER_SECONDS = 0.1


async def collect(where: Sequence[Target], request: Any, warn: Callable[[str], None]) -> list[Any]:
    """All answers of all agents, oldest first. With `request.number`: the first or last ones of all agents together.

    Agents that fail are passed to `warn`. If all fail, the error of the last one is raised; an invalid request
    (exit code 2) is raised at once.
    """
    results = await asyncio.gather(*(_all(one, request) for one in where), return_exceptions=True)
    _check(where, results, warn)
    merged = list(heapq.merge(*(r for r in results if not isinstance(r, BaseException)), key=_time))
    if not request.number or len(where) == 1:
        return merged
    return _first(merged, request.number) if request.first else list(reversed(_first(merged[::-1], request.number)))


async def follow(where: Sequence[Target], request: Any, warn: Callable[[str], None]) -> AsyncIterator[Any]:
    """Answers as they arrive. Those of several agents are sorted by time within REORDER_SECONDS.

    Agents that fail are passed to `warn`. When all have failed, the error of the last one is raised.
    """
    if len(where) == 1:
        async with Client(where[0].address) as client:
            async for answer in client.get_flows(request):
                yield answer
        return
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=4096)
    tasks = [asyncio.create_task(_feed(one, request, queue)) for one in where]
    try:
        async for answer in _reordered(queue, len(tasks), warn):
            yield answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all(where: Target, request: Any) -> list[Any]:
    async with Client(where.address) as client:
        return [answer async for answer in client.get_flows(request)]


def _check(where: Sequence[Target], results: Sequence[Any], warn: Callable[[str], None]) -> None:
    errors: list[NodenetError] = []
    for one, result in zip(where, results, strict=True):
        if isinstance(result, NodenetError):
            errors.append(result)
            # Exit code 2 is an invalid request: every agent rejects it.
            if result.exit_code == 2 or len(errors) == len(where):
                raise result
            warn(f"{one.node}: {result}")
        elif isinstance(result, BaseException):
            raise result


def _first(answers: Sequence[Any], number: int) -> list[Any]:
    found, left = [], number
    for answer in answers:
        if answer.WhichOneof("response_types") == "flow":
            if not left:
                break
            left -= 1
        found.append(answer)
    return found


def _time(answer: Any) -> int:
    return int(answer.time.seconds) * 1_000_000_000 + int(answer.time.nanos)


async def _feed(where: Target, request: Any, queue: asyncio.Queue[Any]) -> None:
    try:
        async with Client(where.address) as client:
            async for answer in client.get_flows(request):
                await queue.put(answer)
    except NodenetError as error:
        await queue.put((where, error))
    else:
        await queue.put((where, None))


async def _reordered(queue: asyncio.Queue[Any], open_streams: int, warn: Callable[[str], None]) -> AsyncIterator[Any]:
    """Hold answers back for REORDER_SECONDS, and yield them in the order of their times."""
    loop = asyncio.get_running_loop()
    heap: list[tuple[int, int, Any]] = []
    arrivals: deque[tuple[float, int]] = deque()
    serial = count()
    while open_streams:
        timeout = arrivals[0][0] + REORDER_SECONDS - loop.time() if arrivals else None
        try:
            item = await asyncio.wait_for(queue.get(), timeout)
        except TimeoutError:
            item = None
        if isinstance(item, tuple):
            open_streams -= 1
            if item[1] is not None:
                if not open_streams or item[1].exit_code == 2:
                    raise item[1]
                warn(f"{item[0].node}: {item[1]}")
        elif item is not None:
            number = next(serial)
            heapq.heappush(heap, (_time(item), number, item))
            arrivals.append((loop.time(), number))
        due = 0
        while arrivals and arrivals[0][0] + REORDER_SECONDS <= loop.time():
            arrivals.popleft()
            due += 1
        for _ in range(due):
            yield heapq.heappop(heap)[2]
    for _, _, answer in sorted(heap):
        yield answer
