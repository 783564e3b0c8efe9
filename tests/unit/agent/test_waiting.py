"""What an ADD waits for: its pod, and watches that tell of policy."""

from __future__ import annotations

import asyncio

import pytest

from nodenet.agent.waiting import pod_known, policies_known
from nodenet.cni.errors import CniError, Code
from nodenet.kube.client import KindStats
from nodenet.store import API_KINDS, Kind, Op, Store
from tests.unit.compile.build import endpoint, pod

ENDPOINT = endpoint(1, "web", "10.0.1.9")


async def test_a_pod_is_waited_for_and_then_asked_for_again() -> None:
    store, event = Store(), asyncio.Event()
    with pytest.raises(CniError, match=r"has not shown it within 0\.01 s") as refused:
        await pod_known(store, ENDPOINT, lambda: event, 0.01)
    assert refused.value.code == Code.TRY_AGAIN
    waiting = asyncio.create_task(pod_known(store, ENDPOINT, lambda: event, 5))
    await asyncio.sleep(0)
    store.apply(Op.ADDED, pod("web", "10.0.1.9"))
    event.set()
    await waiting


@pytest.mark.parametrize("kind", [Kind.NETWORK_POLICY, Kind.NAMESPACE, Kind.POD])
async def test_a_broken_watch_of_what_decides_policy_holds_up_an_add(kind: Kind) -> None:
    stats = {kind: KindStats() for kind in API_KINDS}
    stats[kind].error = "503 not now"
    with pytest.raises(CniError, match=r"may not all be known: watch of .*: 503 not now") as refused:
        await policies_known(stats, ENDPOINT, 0.01)
    assert refused.value.code == Code.TRY_AGAIN
    waiting = asyncio.create_task(policies_known(stats, ENDPOINT, 5))
    await asyncio.sleep(0)
    stats[kind].error = ""
    await waiting


async def test_a_broken_watch_of_services_holds_up_nothing() -> None:
    stats = {kind: KindStats() for kind in API_KINDS}
    stats[Kind.SERVICE].error = "503 not now"
    await policies_known(stats, ENDPOINT, 0)
