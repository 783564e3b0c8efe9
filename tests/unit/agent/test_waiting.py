"""What an ADD waits for: its pod, and the watches of policy kinds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nodenet import kinds
from nodenet import store as store_module
from nodenet.agent.waiting import pod_known, policies_known, refuse_removed
from nodenet.cni.errors import CniError, Code
from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.kinds import API_KINDS, Kind
from nodenet.kube.health import KindStats
from nodenet.model import Namespace
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Listing, Op, Removal, Store
from nodenet.testing import fake_tables
from tests.unit.compile.build import endpoint, pod

ENDPOINT = endpoint(1, "web", "10.0.1.9")


class Pods(Engine):
    """An engine without a loop."""

    def __init__(self, *namespaces: str) -> None:
        super().__init__(LocalNode("node1"), fake_tables(), NoPrograms())
        for name in namespaces:
            self.apply(Op.ADDED, Namespace(name, {}))

    def apply(self, op: Op, obj: object) -> None:
        self.feed(Delta(op, obj))


async def test_a_pod_is_waited_for_and_then_asked_for_again() -> None:
    pods = Pods("default")
    with pytest.raises(CniError, match=r"has not shown it within 0\.01 s") as refused:
        await pod_known(pods, ENDPOINT, 0.01)
    assert refused.value.code == Code.TRY_AGAIN
    waiting = asyncio.create_task(pod_known(pods, ENDPOINT, 5))
    await asyncio.sleep(0)
    pods.apply(Op.ADDED, pod("web", "10.0.1.9"))
    await waiting


async def test_the_namespace_of_a_pod_is_waited_for() -> None:
    """Its labels decide policy, and its watch may be behind that of the pods."""
    pods = Pods("other")
    pods.apply(Op.ADDED, pod("web", "10.0.1.9"))
    with pytest.raises(CniError, match=r"has not shown Namespace default within 0\.01 s") as refused:
        await pod_known(pods, ENDPOINT, 0.01)
    assert refused.value.code == Code.TRY_AGAIN
    waiting = asyncio.create_task(pod_known(pods, ENDPOINT, 5))
    await asyncio.sleep(0)
    pods.apply(Op.ADDED, Namespace("default", {}))
    await waiting


@pytest.mark.parametrize("removal", ["event", "list", "recreated"])
async def test_a_pod_that_was_removed_is_not_waited_for(removal: str) -> None:
    pods = Pods("default")
    gone = pod("web", "10.0.1.9", node_name="node1")
    pods.apply(Op.ADDED, gone)
    waiting = asyncio.create_task(pod_known(pods, replace(ENDPOINT, pod_uid="another"), 5))
    await asyncio.sleep(0)
    if removal == "event":
        pods.feed(Removal(kinds.POD, gone.ref))
    elif removal == "list":
        pods.feed(Listing(kinds.POD, ()))
    else:
        pods.apply(Op.ADDED, replace(gone, uid="another"))
    refuse_removed(pods, gone.ref, "")
    refuse_removed(pods, gone.ref, "never seen")
    if removal == "recreated":
        await waiting
        pods.feed(Removal(kinds.POD, gone.ref))
    for uid in (gone.uid, "another")[: 1 + (removal == "recreated")]:
        with pytest.raises(CniError, match=f"UID {uid}.: the Kubernetes API has removed it") as refused:
            await pod_known(pods, replace(ENDPOINT, pod_uid=uid), 5)
        assert refused.value.code == Code.TRY_AGAIN
    waiting.cancel()


async def test_a_removal_ends_a_wait() -> None:
    """A pod of the same name is there: the old one, then the next. Neither is the endpoint's."""
    pods = Pods("default")
    mine = pod("web", "10.0.1.9", node_name="node1")
    pods.apply(Op.ADDED, replace(mine, uid="before"))
    waiting = asyncio.create_task(pod_known(pods, replace(ENDPOINT, pod_uid=mine.uid), 5))
    await asyncio.sleep(0)
    pods.apply(Op.MODIFIED, mine)
    pods.apply(Op.MODIFIED, replace(mine, uid="after"))
    with pytest.raises(CniError, match="has removed it"):
        await waiting


def test_removed_pods_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_REMOVED_PODS", 3)
    store = Store()
    for number in range(5):
        store.apply(Op.ADDED, replace(pod("web", "10.0.1.9"), uid=f"u{number}"))
    store.delete(kinds.POD, pod("web", "10.0.1.9").ref)
    assert [number for number in range(5) if store.pod_is_removed(f"u{number}")] == [2, 3, 4]


def test_removed_pods_of_other_nodes_are_not_remembered() -> None:
    """In a large cluster they would push out those of this node."""
    store = Store(node_name="node1")
    for name, node in (("here", "node1"), ("there", "node2"), ("nowhere", "")):
        store.apply(Op.ADDED, replace(pod(name, "10.0.1.9"), uid=name, node_name=node))
        store.delete(kinds.POD, pod(name, "10.0.1.9").ref)
    assert [name for name in ("here", "there", "nowhere") if store.pod_is_removed(name)] == ["here"]


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
