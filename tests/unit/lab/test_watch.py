"""Lists in pages, and watches: in order, without loss or duplicates; 410 if the history is too short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.lab.apiserver.resources import BY_KIND
from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.apiserver.storage import Storage
from nodenet.lab.apiserver.watch import Query, WatchEvent, WatchOptions, listing, watch

Obj = dict[str, Any]
PODS = Query(BY_KIND["Pod"])


def put(storage: Storage, name: str, namespace: str = "default", **labels: str) -> None:
    metadata = {"name": name, "namespace": namespace, "uid": name, "labels": labels}
    storage.put("Pod", {"metadata": metadata, "spec": {}, "status": {}})


def told(event: WatchEvent) -> tuple[str, str]:
    return event.type, event.object.ref[1] if event.object else ""


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(count)]


async def all_of(events: AsyncIterator[WatchEvent]) -> list[WatchEvent]:
    async with asyncio.timeout(5):
        return [event async for event in events]


@pytest.fixture
def storage() -> Storage:
    return Storage(history=4, first_version=100)


async def test_without_a_version_the_watch_begins_with_what_is_there(storage: Storage) -> None:
    put(storage, "a")
    events = watch(storage, PODS, WatchOptions())
    assert [told(e) for e in await take(events, 1)] == [("ADDED", "a")]
    put(storage, "a", x="y")
    storage.remove("Pod", ("default", "a"))
    modified, deleted = await take(events, 2)
    assert (told(modified), told(deleted)) == (("MODIFIED", "a"), ("DELETED", "a"))
    assert deleted.object is not None
    assert deleted.object.decode()["metadata"]["resourceVersion"] == str(storage.version)


async def test_with_a_version_it_goes_on_after_it(storage: Storage) -> None:
    put(storage, "a")
    version = storage.version
    put(storage, "b")
    events = await all_of(watch(storage, PODS, WatchOptions(version, timeout=0)))
    assert [told(e) for e in events] == [("ADDED", "b")]
    assert await all_of(watch(storage, PODS, WatchOptions(storage.version, timeout=0))) == []


async def test_a_selector_sees_objects_come_and_go(storage: Storage) -> None:
    query = Query(BY_KIND["Pod"], labels="app in (web,api),!old")
    version = storage.version
    put(storage, "a", app="web")
    put(storage, "b", app="db")
    put(storage, "a", app="web", old="yes")
    put(storage, "b", app="api")
    events = await all_of(watch(storage, query, WatchOptions(version, timeout=0)))
    assert [told(e) for e in events] == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "b")]
    assert [e.version for e in events] == sorted(e.version for e in events)


async def test_an_old_version_is_gone(storage: Storage) -> None:
    start = storage.version
    for number in range(20):
        put(storage, f"p{number}")
    with pytest.raises(ApiError) as error:
        await all_of(watch(storage, PODS, WatchOptions(start, timeout=0)))
    assert (error.value.code, error.value.reason) == (410, "Expired")


async def test_a_version_of_an_earlier_endpoint_is_gone(storage: Storage) -> None:
    for version in (5, storage.version + 1):
        with pytest.raises(ApiError) as error:
            await all_of(watch(storage, PODS, WatchOptions(version, timeout=0)))
        assert error.value.code == 410


async def test_a_reader_that_falls_behind_gets_410(storage: Storage) -> None:
    events = watch(storage, PODS, WatchOptions())
    put(storage, "first")
    await take(events, 1)
    for number in range(20):
        put(storage, f"p{number}")
    with pytest.raises(ApiError) as error:
        await take(events, 20)
    assert error.value.code == 410


async def test_bookmarks_tell_how_far_a_quiet_watch_is(storage: Storage) -> None:
    options = WatchOptions(storage.version, bookmark_seconds=0.01)
    events = watch(storage, PODS, options)
    storage.put("Namespace", {"metadata": {"name": "n", "uid": "n"}})
    (bookmark,) = await take(events, 1)
    assert (bookmark.type, bookmark.version) == ("BOOKMARK", storage.version)
    put(storage, "a")
    rest = await all_of(watch(storage, PODS, WatchOptions(bookmark.version, timeout=0)))
    assert [told(e) for e in rest] == [("ADDED", "a")]


async def test_initial_events_end_with_a_bookmark(storage: Storage) -> None:
    put(storage, "a")
    events = await take(watch(storage, PODS, WatchOptions(initial_events=True)), 2)
    assert [told(e) for e in events] == [("ADDED", "a"), ("BOOKMARK", "")]
    assert events[1].initial_end


def test_pages_show_one_state(storage: Storage) -> None:
    storage.logs["Pod"].forget()
    for name in "abcde":
        put(storage, name)
    first = listing(storage, PODS, limit=2)
    assert ([s.ref[1] for s in first.items], first.remaining) == (["a", "b"], 3)
    storage.remove("Pod", ("default", "c"))
    put(storage, "d", changed="yes")
    put(storage, "dd")
    second = listing(storage, PODS, limit=2, token=first.token)
    third = listing(storage, PODS, limit=2, token=second.token)
    assert [s.ref[1] for s in second.items + third.items] == ["c", "d", "e"]
    assert second.items[1].labels == {}
    assert {first.version, second.version, third.version} == {first.version}
    assert third.token == ""
    for number in range(20):
        put(storage, f"p{number}")
    with pytest.raises(ApiError) as error:
        listing(storage, PODS, limit=2, token=first.token)
    assert error.value.code == 410
    with pytest.raises(ApiError, match="continue key is not valid"):
        listing(storage, PODS, token="nonsense")


async def test_field_selectors(api: ApiServer) -> None:
    for name, node in (("a", "n1"), ("b", "")):
        spec = {"containers": [{"name": "c", "image": "i"}]} | ({"nodeName": node} if node else {})
        await api.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})

    async def names(fields: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in (await api.client.list("Pod", fields=fields)).items]

    assert await names("spec.nodeName=n1") == ["a"]
    assert await names("spec.nodeName!=n1") == ["b"]
    assert await names("spec.nodeName=,status.phase=Pending") == ["b"]
    assert await names("metadata.name=a,metadata.namespace=default") == ["a"]
    with pytest.raises(ApiError, match=r"field label not supported: spec.color"):
        await names("spec.color=red")


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("", "abc"),
        ("app=x", "a"),
        ("app==x,tier", "a"),
        ("app!=x", "bc"),
        ("app in (x, y)", "ab"),
        ("app notin (x)", "bc"),
        ("!app", "c"),
        ("tier,app", "a"),
        ("n>1", "b"),
    ],
)
def test_label_selectors(storage: Storage, selector: str, wanted: str) -> None:
    put(storage, "a", app="x", tier="")
    put(storage, "b", app="y", n="2")
    put(storage, "c", n="1")
    found = listing(storage, Query(BY_KIND["Pod"], labels=selector)).items
    assert "".join(s.ref[1] for s in found) == wanted


@pytest.mark.parametrize("selector", ["a in (b", "=x", "a=b=c", "a b", "in (a)"])
def test_a_bad_label_selector_is_named(storage: Storage, selector: str) -> None:
    with pytest.raises(ApiError, match="unable to parse requirement") as error:
        listing(storage, Query(BY_KIND["Pod"], labels=selector))
    assert error.value.code == 400


_steps = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["x", "y", "gone"])), max_size=40)


@settings(deadline=None)
@given(
    steps=_steps, cut=st.integers(0, 40), selector=st.sampled_from(["", "app=x"]), breaks=st.sets(st.integers(0, 40))
)
def test_list_and_watch_together_are_the_store(
    steps: list[tuple[str, str]], cut: int, selector: str, breaks: set[int]
) -> None:
    """A reader that lists at any moment, watches, and reconnects at any event ends with what the store holds."""
    storage = Storage(history=1000, first_version=0)
    query = Query(BY_KIND["Pod"], labels=selector)

    def play(part: list[tuple[str, str]]) -> None:
        for name, app in part:
            if app != "gone":
                put(storage, name, app=app)
            elif storage.get("Pod", ("default", name)):
                storage.remove("Pod", ("default", name))

    async def read() -> dict[tuple[str, str], int]:
        put(storage, "seed")
        play(steps[:cut])
        page = listing(storage, query)
        known = {stored.ref: stored.version for stored in page.items}
        play(steps[cut:])
        version, number, going = page.version, 0, True
        while going:
            going = False
            async for event in watch(storage, query, WatchOptions(version, timeout=0)):
                assert event.object is not None
                assert event.version > version
                version, number = event.version, number + 1
                if event.type == "DELETED":
                    del known[event.object.ref]
                else:
                    assert (event.type == "ADDED") == (event.object.ref not in known)
                    known[event.object.ref] = event.object.version
                if number in breaks:
                    going = True
                    break
        return known

    assert asyncio.run(read()) == {s.ref: s.version for s in listing(storage, query).items}
