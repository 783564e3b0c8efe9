"""What an ADD waits for: its pod, and watches that tell of policy."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nodenet import kinds
from nodenet import store as store_module
from nodenet.agent.waiting import pod_known, policies_known, refuse_removed
from nodenet.cni.errors import CniError, Code
from nodenet.kinds import API_KINDS, Kind
from nodenet.kube.health import KindStats
from nodenet.store import Op, Store
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


@pytest.mark.parametrize("removal", ["event", "list", "recreated"])
async def test_a_pod_that_was_removed_is_not_waited_for(removal: str) -> None:
    store, event = Store(), asyncio.Event()
    gone = pod("web", "10.0.1.9")
    store.apply(Op.ADDED, gone)
    waiting = asyncio.create_task(pod_known(store, replace(ENDPOINT, pod_uid="another"), lambda: event, 5))
    await asyncio.sleep(0)
    if removal == "event":
        store.delete(kinds.POD, gone.ref)
    elif removal == "list":
        store.replace(kinds.POD, [])
    else:
        store.apply(Op.ADDED, replace(gone, uid="another"))
    refuse_removed(store, gone.ref, "")
    refuse_removed(store, gone.ref, "never seen")
    if removal == "recreated":
        event.set()
        await waiting
        store.delete(kinds.POD, gone.ref)
    for uid in (gone.uid, "another")[: 1 + (removal == "recreated")]:
        with pytest.raises(CniError, match=f"UID {uid}.: the Kubernetes API has removed it") as refused:
            await pod_known(store, replace(ENDPOINT, pod_uid=uid), lambda: asyncio.Event(), 5)
        assert refused.value.code == Code.TRY_AGAIN
    waiting.cancel()


async def test_a_removal_ends_a_wait() -> None:
    """A pod of the same name is there: the old one, then the next. Neither is the endpoint's."""
    store, event = Store(), asyncio.Event()
    mine = pod("web", "10.0.1.9")
    store.apply(Op.ADDED, replace(mine, uid="before"))
    waiting = asyncio.create_task(pod_known(store, replace(ENDPOINT, pod_uid=mine.uid), lambda: event, 5))
    await asyncio.sleep(0)
    store.apply(Op.MODIFIED, mine)
    store.apply(Op.MODIFIED, replace(mine, uid="after"))
    event.set()
    with pytest.raises(CniError, match="has removed it"):
        await waiting


def test_removed_pods_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_REMOVED_PODS", 3)
    store = Store()
    for number in range(5):
        store.apply(Op.ADDED, replace(pod("web", "10.0.1.9"), uid=f"u{number}"))
    store.delete(kinds.POD, pod("web", "10.0.1.9").ref)
    assert [number for number in range(5) if store.pod_is_removed(f"u{number}")] == [2, 3, 4]


@pytest.mark.parametrize("kind", [kinds.NETWORK_POLICY, kinds.NAMESPACE, kinds.POD])
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
    stats[kinds.SERVICE].error = "503 not now"
    await policies_known(stats, ENDPOINT, 0)
