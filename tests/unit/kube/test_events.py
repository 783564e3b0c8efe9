"""Events: what becomes one, and that the API gets them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.kube.config import ClusterAccess
from nodenet.kube.correlate import (
    LONGEST_MESSAGE,
    NODE_BURST,
    NODE_SECONDS,
    OBJECT_BURST,
    OBJECT_SECONDS,
    REMEMBERED,
    SIMILAR_MESSAGES,
    SIMILAR_PREFIX,
    SIMILAR_SECONDS,
    About,
    Correlator,
    Notice,
    shortened,
)
from nodenet.kube.events import EventRecorder
from nodenet.kube.writer import KubeWriter
from nodenet.lab.apiserver.server import ApiServer, serve


def about(name: str = "web", namespace: str = "shop") -> About:
    return About("v1", "Pod", namespace, name, f"uid-{name}")


def notice(message: str = "no", name: str = "web", reason: str = "Denied", namespace: str = "shop") -> Notice:
    return Notice(about(name, namespace), "Warning", reason, message)


def test_the_same_again_is_counted() -> None:
    found = Correlator()
    first, second = found.take(notice(), 10.0), found.take(notice(), 12.0)
    assert first is not None
    assert second is not None
    assert (first.count, second.count, second.name, second.first, second.last) == (1, 2, first.name, 10.0, 12.0)
    other = found.take(notice(reason="Other"), 13.0)
    assert other is not None
    assert (other.count, other.name != first.name) == (1, True)
    found.forget(second)
    again = found.take(notice(), 14.0)
    assert again is not None
    assert (again.count, again.name != first.name) == (1, True)


def test_many_messages_become_one_event_for_a_time() -> None:
    found = Correlator()
    entries = [found.take(notice(f"port {number}"), 10.0 + number) for number in range(20)]
    names = Counter(entry.name for entry in entries if entry)
    assert len(names) == SIMILAR_MESSAGES + 1
    last = entries[-1]
    assert last is not None
    assert (last.count, last.notice.message) == (20 - SIMILAR_MESSAGES, SIMILAR_PREFIX + "port 19")
    found.forget(last)
    fresh = found.take(notice("port 30"), 40.0)
    assert fresh is not None
    assert fresh.count == 1
    later = found.take(notice("port 50"), 10.0 + SIMILAR_SECONDS + 1)
    assert later is not None
    assert later.notice.message == "port 50"


NOTICES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 30), st.sampled_from([0.0, 0.01, 1.0, 100.0])),
    min_size=50,
    max_size=400,
)


@settings(max_examples=30)
@given(NOTICES)
def test_whatever_pods_do_the_budgets_hold(notices: list[tuple[int, int, float]]) -> None:
    found = Correlator()
    now, taken = 0.0, Counter[int]()
    for pod, message, passed in notices:
        now += passed
        taken[pod] += found.take(notice(str(message), f"p{pod}"), now) is not None
    assert all(count <= OBJECT_BURST + now / OBJECT_SECONDS + 1 for count in taken.values())
    assert taken.total() <= NODE_BURST + now / NODE_SECONDS + 1


def test_new_objects_do_not_get_round_the_budget_of_the_node() -> None:
    found = Correlator()
    assert sum(found.take(notice(name=f"p{n}"), 1.0) is not None for n in range(2 * REMEMBERED)) == NODE_BURST
    # Once a pod has used up its own, the node's is left to others.
    found = Correlator()
    assert sum(found.take(notice(), 1.0) is not None for _ in range(1000)) == OBJECT_BURST
    assert found.take(notice(name="other"), 1.0) is not None


@given(st.text(st.characters(exclude_categories=[]), max_size=3000))
def test_messages_are_short_and_printable(text: str) -> None:
    found = shortened(text)
    assert len(found.encode()) <= LONGEST_MESSAGE
    assert found.isprintable()


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[ApiServer, EventRecorder]]:
    async def soon(_seconds: float) -> None:
        await asyncio.sleep(0)

    api = ApiServer()
    await api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    async with (
        serve(api, addresses=[("127.0.0.1", 0)]) as server,
        KubeWriter(ClusterAccess(server.urls[0]), sleep=soon) as writer,
    ):
        recorder = EventRecorder(writer, "nodenet", "node1")
        task = asyncio.create_task(recorder.run())
        try:
            yield api, recorder
        finally:
            task.cancel()


async def events(api: ApiServer, namespace: str) -> list[dict[str, Any]]:
    return (await api.client.list("Event", namespace)).items


async def test_events_reach_the_api() -> None:
    async with recording() as (api, recorder), asyncio.timeout(10):
        for _ in range(3):
            recorder.record(notice("no\nroute"))
        recorder.record(Notice(About("v1", "Node", "", "node1"), "Normal", "Ready", "it runs"))
        await recorder.flush()
        (pod,) = await events(api, "shop")
        assert (pod["count"], pod["message"], pod["reason"], pod["type"]) == (3, "no route", "Denied", "Warning")
        assert pod["involvedObject"]["uid"] == "uid-web"
        assert pod["source"] == {"component": "nodenet", "host": "node1"}
        (node,) = await events(api, "default")
        assert node["involvedObject"]["name"] == "node1"
        # The API forgets Events; the next one of the kind is made again with the count so far.
        await api.client.delete("Event", pod["metadata"]["name"], "shop")
        recorder.record(notice("no\nroute"))
        await recorder.flush()
        assert [entry["count"] for entry in await events(api, "shop")] == [4]
        # Of a namespace that is gone: nothing is left, and nothing stops.
        recorder.record(notice(namespace="away"))
        recorder.record(notice("other"))
        await recorder.flush()
        assert len(await events(api, "shop")) == 2


async def test_what_finds_no_room_is_counted() -> None:
    async with KubeWriter(ClusterAccess("http://127.0.0.1:1")) as writer:
        recorder = EventRecorder(writer, "nodenet", "node1", waiting=3)
        for number in range(5):
            recorder.record(notice(name=f"p{number}"))
        assert recorder.lost == 2
