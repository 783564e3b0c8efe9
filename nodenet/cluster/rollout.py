"""Waits until a DaemonSet runs on every node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nodenet.cluster.client import DAEMON_SETS, Cluster
from nodenet.cluster.release import NAMESPACE

_POLL_SECONDS = 1.0


async def wait(
    cluster: Cluster, name: str, seconds: float, say: Callable[[str], None], fail: Callable[[str], Awaitable[Exception]]
) -> None:
    """Wait until every node runs the DaemonSet's present version, ready. After `seconds` raises the error that `fail`
    makes of what is missing."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        found = await cluster.find(DAEMON_SETS, NAMESPACE, name)
        missing = left(found) if found else "it does not exist"
        if not missing:
            return
        if missing != said:
            say(f"DaemonSet {NAMESPACE}/{name}: {missing}")
            said = missing
        if time.monotonic() > deadline:
            raise await fail(missing)
        await asyncio.sleep(_POLL_SECONDS)


def left(found: Mapping[str, Any]) -> str:
    """What is missing until a rollout of a DaemonSet is complete; "" if nothing is."""
    status = found.get("status") or {}
    wanted = status.get("desiredNumberScheduled", 0)
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return "the controller has not seen the change yet"
    updated, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
    if updated < wanted:
        return f"{updated} of {wanted} nodes have the new version"
    return f"{ready} of {wanted} nodes are ready" if ready < wanted else ""
