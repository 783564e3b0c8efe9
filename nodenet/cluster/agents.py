"""The agents of a cluster: one pod of the DaemonSet on each node, and what each answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nodenet.cluster.client import PODS, SELECTOR, Cluster, owned_by
from nodenet.cluster.execute import Place, Ran, execute
from nodenet.cluster.release import NAME, NAMESPACE
from nodenet.errors import CannotRunError, NodenetError

Obj = dict[str, Any]
_T = TypeVar("_T")

CONTAINER = "agent"
# How many nodes are asked at once.
_AT_ONCE = 16
_SECONDS = 20.0


async def pods(cluster: Cluster) -> dict[str, Obj]:
    """The agents' pods by node. A node that is being updated may have two: the one that ends is left out."""
    found = {}
    for pod in await cluster.list(PODS, NAMESPACE, labelSelector=SELECTOR):
        node = pod["spec"].get("nodeName")
        if node and owned_by(pod, "DaemonSet", NAME) and "deletionTimestamp" not in pod["metadata"]:
            found[str(node)] = pod
    return found


def place(pod: Mapping[str, Any]) -> Place:
    return Place(NAMESPACE, pod["metadata"]["name"], CONTAINER)


async def run(cluster: Cluster, pod: Mapping[str, Any], *words: str, seconds: float = _SECONDS) -> Ran:
    """Run `nodenet WORDS` beside an agent. Raises NodenetError."""
    return await execute(cluster, place(pod), ["nodenet", *words], seconds)


async def status(cluster: Cluster, pod: Mapping[str, Any]) -> Obj:
    """The status of an agent as `nodenet status -o json` prints it. Raises NodenetError."""
    ran = await run(cluster, pod, "status", "-o", "json")
    try:
        # Exit code 1 means that it is not healthy.
        found = json.loads(ran.stdout) if ran.status in (0, 1) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        text = ran.stderr.decode(errors="replace").strip() or f"exit code {ran.status}"
        raise CannotRunError(f"{place(pod)}: nodenet status: {text}")
    return found


async def each(items: Iterable[_T], do: Callable[[_T], Awaitable[Any]]) -> Sequence[Any]:
    """Call `do` for every item, some at once. The results are in the order of the items; NodenetError is a result."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(item: _T) -> Any:
        async with limit:
            try:
                return await do(item)
            except NodenetError as error:
                return error

    return await asyncio.gather(*(one(item) for item in items))
