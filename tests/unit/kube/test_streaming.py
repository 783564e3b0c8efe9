"""Streaming lists: the list is the beginning of a watch. And what replaces them on servers that do not have them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nodenet import kinds
from nodenet.kube.reader import Options
from nodenet.model import Namespace, ObjectRef
from nodenet.store import Delta, Listing, Op, Removal
from tests.unit.kube.api import CUT, GONE, HOLD, Script, bookmark, event, namespace, page, take, watching


def end(version: str, marked: str = "true") -> Any:
    """The bookmark after the last object of a streaming list."""
    found = bookmark(version)
    found["object"]["metadata"]["annotations"] = {"k8s.io/initial-events-end": marked}
    return found


def listing(*names: str, keep: tuple[str, ...] = ()) -> Listing:
    objects = tuple(Namespace(name, {}) for name in names)
    return Listing(kinds.NAMESPACE, objects, tuple(ObjectRef("", name) for name in keep))


async def test_one_request_lists_and_watches() -> None:
    script = Script()
    script.streams = [
        [
            event("ADDED", namespace("a", "3")),
            event("ADDED", namespace("b", "5")),
            end("9"),
            event("ADDED", namespace("c", "10")),
            event("DELETED", namespace("a", "11")),
        ]
    ]
    script.watches = [[event("ADDED", namespace("d", "12")), HOLD]]
    async with watching(script) as (client, events, pauses):
        assert await take(events, 4) == [
            listing("a", "b"),
            Delta(Op.ADDED, Namespace("c", {})),
            Removal(kinds.NAMESPACE, ObjectRef("", "a")),
            Delta(Op.ADDED, Namespace("d", {})),
        ]
        stats = client.stats[kinds.NAMESPACE]
        assert (stats.lists, stats.watches, stats.errors, pauses.seconds) == (1, 2, 0, [])
    (asked,) = script.stream_queries
    assert asked.pop("timeoutSeconds")
    # Without a resourceVersion the list is as new as the request.
    assert asked == {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    # The stream ended as every watch does: the next one goes on from its last event, without a list.
    (after,) = script.watch_queries
    assert after["resourceVersion"] == "11"
    assert script.list_queries == []


async def test_changes_during_a_list_belong_to_it() -> None:
    script = Script()
    script.streams = [
        [
            event("ADDED", namespace("a", "3", x="old")),
            event("ADDED", namespace("b", "5")),
            event("MODIFIED", namespace("a", "7")),
            event("DELETED", namespace("b", "8")),
            event("ADDED", {"metadata": {"name": "bad", "labels": 5}}),
            event("ADDED", {"metadata": 5}),
            end("9"),
            HOLD,
        ]
    ]
    async with watching(script) as (client, events, _):
        (found,) = await take(events, 1)
        assert isinstance(found, Listing)
        assert {obj.name for obj in found.objects if isinstance(obj, Namespace) and not obj.labels} == {"a", "bad"}
        assert client.stats[kinds.NAMESPACE].nameless == 1


@pytest.mark.parametrize("refusal", [400, 422, [bookmark("4")], [event("ADDED", namespace("x")), end("4", "false")]])
async def test_a_server_without_streaming_lists_gives_pages(refusal: Any) -> None:
    """It refuses the parameters, or ignores them: then its first bookmark is not marked. It is asked once only."""
    script = Script([page(namespace("a"), version="7")], [410, [HOLD]])
    script.streams = [refusal]
    async with watching(script) as (client, events, pauses):
        assert await take(events, 2) == [listing("a")] * 2
        assert pauses.seconds == []
        # Not an error of the server: only the 410 counts.
        assert client.stats[kinds.NAMESPACE].errors == 1
    assert len(script.stream_queries) == 1
    first, second = script.list_queries
    assert first == {"limit": "500", "resourceVersion": "0"}
    # From the server's memory too, but never older than what is known.
    assert second == {"resourceVersion": "7", "resourceVersionMatch": "NotOlderThan"}


@pytest.mark.parametrize(
    "broken",
    [
        [event("ADDED", namespace("a")), end("")],
        [event("ADDED", namespace("a"))],
        [event("ADDED", namespace("a")), CUT],
        [HOLD],
        [],
        [GONE],
        503,
        429,
    ],
)
async def test_half_a_list_is_no_list(broken: Any) -> None:
    """Whatever ends it, the store gets nothing of it, and a streaming list is tried again."""
    script = Script([page(namespace("wrong"))])
    script.streams = [broken, [event("ADDED", namespace("b", "5")), end("9"), HOLD]]
    async with watching(script, options=Options(idle_seconds=0.2)) as (client, events, _pauses):
        assert await take(events, 1) == [listing("b")]
        assert client.stats[kinds.NAMESPACE].errors == 1
        assert client.stats[kinds.NAMESPACE].error == ""
    assert len(script.stream_queries) == 2
    assert script.list_queries == []


async def test_streaming_lists_without_a_version_end_in_pages() -> None:
    """Else each end of the watch would be a new list of all agents, without a pause."""
    script = Script([page(namespace("a"), version="7")], [[HOLD]])
    script.streams = [[event("ADDED", namespace("a")), end("")]] * 5
    async with watching(script) as (_, events, pauses):
        assert await take(events, 1) == [listing("a")]
    assert (len(script.stream_queries), len(pauses.seconds)) == (3, 3)


async def test_a_bookmark_that_never_comes_ends_in_pages() -> None:
    """An old proxy in front of the API may drop what it does not know."""
    script = Script([page(namespace("a"), version="7")], [[HOLD]])
    script.streams = [[event("ADDED", namespace("a")), HOLD] for _ in range(5)]
    async with watching(script, options=Options(idle_seconds=0.05)) as (client, events, pauses):
        assert await take(events, 1) == [listing("a")]
        assert pauses.seconds == [0.1, 0.2, 0.4]
        assert client.stats[kinds.NAMESPACE].errors == 3
    assert len(script.stream_queries) == 3


async def test_after_410_the_state_is_streamed_again() -> None:
    script = Script([page(namespace("wrong"))])
    script.streams = [
        [event("ADDED", namespace("a", "5")), end("9"), GONE],
        [event("ADDED", namespace("b", "50")), end("90"), HOLD],
    ]
    async with watching(script) as (_, events, pauses):
        assert await take(events, 2) == [listing("a"), listing("b")]
        assert pauses.seconds == []
    assert [query.get("resourceVersion") for query in script.stream_queries] == [None, None]


async def test_410_in_the_middle_of_pages() -> None:
    """The next attempt asks for one piece: tokens of long lists could expire again and again."""
    script = Script(
        [page(namespace("a"), version="7", more="t"), (410, {"code": 410}), page(namespace("a"), namespace("b"))]
    )
    async with watching(script, options=Options(streams=False)) as (_, events, _pauses):
        assert await take(events, 1) == [listing("a", "b")]
    assert script.list_queries == [
        {"limit": "500", "resourceVersion": "0"},
        {"limit": "500", "continue": "t"},
        {},
    ]


async def test_a_server_that_went_back_in_time() -> None:
    """After etcd was restored from a backup no server has the version that this agent has seen."""
    too_large = (504, {"kind": "Status", "code": 504, "message": "Timeout: Too large resource version: 900"})
    script = Script([page(version="900"), too_large, page(namespace("a"), version="20")], [410, [HOLD]])
    async with watching(script, options=Options(streams=False)) as (_, events, pauses):
        assert await take(events, 2) == [listing(), listing("a")]
        assert len(pauses.seconds) == 1
    assert [query.get("resourceVersion") for query in script.list_queries] == ["0", "900", None]


async def test_only_used_objects_are_asked_for() -> None:
    script = Script([page()], [[HOLD]])
    async with watching(script, kinds.ENDPOINT_SLICE) as (_, events, _pauses):
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(5):
            while not script.watch_queries:  # noqa: ASYNC110
                await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
    wanted = "kubernetes.io/service-name,!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
    asked = [*script.stream_queries, *script.list_queries, *script.watch_queries]
    assert [query["labelSelector"] for query in asked] == [wanted] * 3
