"""Lists and watches against a server that does what servers do."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from typing import Any

import pytest

from nodenet import kinds
from nodenet.agent.api_health import watch_trouble
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.health import CUT_OFF_SECONDS, LAST_BACKOFF_SECONDS, STALE_SECONDS
from nodenet.kube.reader import IDLE_SECONDS, Options
from nodenet.model import Namespace, ObjectRef
from nodenet.store import Delta, Listing, Op, Removal
from tests.unit.kube.api import (
    CUT,
    GONE,
    HOLD,
    Pauses,
    Script,
    bookmark,
    event,
    namespace,
    page,
    serving,
    take,
    watching,
)


def listing(*names: str, keep: tuple[str, ...] = ()) -> Listing:
    objects = tuple(Namespace(name, {}) for name in names)
    return Listing(kinds.NAMESPACE, objects, tuple(ObjectRef("", name) for name in keep))


async def test_pages_then_a_watch_from_their_version() -> None:
    script = Script([page(namespace("a"), version="7", more="token"), page(namespace("b"), version="7")])
    script.watches = [
        [
            event("ADDED", namespace("c", "8", team="x")),
            event("MODIFIED", namespace("c", "9")),
            event("DELETED", namespace("a", "10")),
            asyncio.Event(),
        ]
    ]
    async with watching(script) as (client, events, _):
        assert await take(events, 4) == [
            listing("a", "b"),
            Delta(Op.ADDED, Namespace("c", {"team": "x"})),
            Delta(Op.MODIFIED, Namespace("c", {})),
            Removal(kinds.NAMESPACE, ObjectRef("", "a")),
        ]
        assert client.stats[kinds.NAMESPACE].lists == 1
    first, second, watch = script.queries
    assert first == {"limit": "500", "resourceVersion": "0"}
    assert second == {"limit": "500", "continue": "token"}
    assert watch["resourceVersion"] == "7"
    assert watch["allowWatchBookmarks"] == "true"
    assert script.headers[0]["Authorization"] == "Bearer secret"


async def test_bookmarks_move_the_version_and_an_ended_watch_goes_on_from_there() -> None:
    script = Script([page(version="7")])
    script.watches = [[bookmark("20")], [event("ADDED", namespace("a", "21"))], [HOLD]]
    async with watching(script) as (_, events, pauses):
        assert await take(events, 2) == [listing(), Delta(Op.ADDED, Namespace("a", {}))]
        assert pauses.seconds == []
    assert [q["resourceVersion"] for q in script.watch_queries] == ["7", "20"]
    assert len(script.list_queries) == 1


@pytest.mark.parametrize("gone", [410, [GONE], [event("ADDED", namespace("a")), b'{"type": "ADD\n'], 400])
async def test_what_cannot_be_continued_is_listed_again(gone: Any) -> None:
    script = Script([page(version="7"), page(namespace("z"), version="30")], [gone, [HOLD]])
    async with watching(script) as (client, events, pauses):
        found = await take(events, 2 if not isinstance(gone, list) or gone == [GONE] else 3)
        assert found[0] == listing()
        assert found[-1] == listing("z")
        assert client.stats[kinds.NAMESPACE].errors == 1
        # After 410 Gone the list comes at once.
        assert len(pauses.seconds) == (0 if gone in (410, [GONE]) else 1)
        await settled(script, 2)
    assert [q["resourceVersion"] for q in script.watch_queries][1:] in ([], ["30"])


async def settled(script: Script, watches: int) -> None:
    """The generator asks for the next watch only when somebody asks for the next event."""
    await asyncio.sleep(0)
    assert len(script.watch_queries) <= watches


async def test_a_server_that_says_410_again_and_again_is_not_hammered() -> None:
    """The first list comes at once; when that does not help, the pauses grow although each list succeeds."""
    script = Script([page(version="7")], [410, 410, [GONE], 410, [event("ADDED", namespace("a"))], 410, [HOLD]])
    async with watching(script) as (_, events, pauses):
        assert (await take(events, 6))[:5] == [listing()] * 5
        assert pauses.seconds == [0.1, 0.2, 0.4]
        # Something came: the next 410 is the first again.
        await take(events, 1)
        assert pauses.seconds == [0.1, 0.2, 0.4]


async def test_410_after_an_outage_lists_at_once() -> None:
    script = Script([page(version="7"), page(version="9")], [503] * 9 + [410, [HOLD]])
    async with watching(script) as (_, events, pauses):
        await take(events, 2)
        assert len(pauses.seconds) == 9
        assert max(pauses.seconds) == LAST_BACKOFF_SECONDS <= 5


async def test_one_kind_that_gets_through_wakes_the_others() -> None:
    """Pods wait for long. Namespaces are served again: pods are asked for at once, and their pauses are small again."""
    waiting, forever = asyncio.Event(), asyncio.Event()
    serving_again = Script([(403, {"code": 403}), page(namespace("a"))])

    async def sleep(seconds: float) -> None:
        if seconds >= 0.4:
            waiting.set()
            await forever.wait()

    starting = Script([(503, b"")] * 3 + [(403, {"code": 403}), page()])
    async with serving(starting) as pods_url, serving(serving_again) as url:
        access = ClusterAccess(pods_url)
        async with KubeClient(access, sleep=sleep, spread=lambda: 1.0) as client:
            pods = client.watch(kinds.POD)
            first = asyncio.ensure_future(anext(pods))
            await waiting.wait()
            assert not first.done()
            client._session.access = ClusterAccess(url)
            namespaces = client.watch(kinds.NAMESPACE)
            assert await take(namespaces, 1) == [listing("a")]
            client._session.access = access
            async with asyncio.timeout(5):
                assert await first == Listing(kinds.POD, ())
            await pods.aclose()  # type: ignore[attr-defined]
            await namespaces.aclose()  # type: ignore[attr-defined]


async def test_a_connected_watch_is_no_trouble_before_its_first_event() -> None:
    """On a quiet cluster the first event may be a minute away."""
    script = Script([page(version="7")], [503, [HOLD]])
    async with watching(script) as (client, events, _):
        stats = client.stats[kinds.NAMESPACE]
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(5):
            while stats.watches < 1 or stats.error:  # noqa: ASYNC110 the statistics are what is tested
                await asyncio.sleep(0)
        assert (stats.errors, stats.events, stats.failing_since) == (1, 0, 0.0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait((waiting,))


async def test_the_age_of_the_last_byte_is_known() -> None:
    """Headers, lists and pieces of lines count; silence makes it stale, and so does a failure."""
    script = Script([page(version="7")], [[bookmark("8"), b'{"type": ', HOLD]])
    async with watching(script) as (client, events, _):
        stats = client.stats[kinds.NAMESPACE]
        assert stats.age(time.monotonic()) is None
        before = time.monotonic()
        await take(events, 1)
        assert before <= stats.last_byte <= time.monotonic()
        assert not stats.cut_off(stats.last_byte + STALE_SECONDS)
        assert stats.cut_off(stats.last_byte + STALE_SECONDS + 1)
        assert list(watch_trouble(client.stats, stats.last_byte + STALE_SECONDS)) == []
        (sentence,) = watch_trouble(client.stats, stats.last_byte + STALE_SECONDS + 1)
        assert sentence == "watch of Namespace: the API server has sent nothing for 111 s"
    # A silent watch is asked for again before silence counts as a failure.
    assert IDLE_SECONDS < STALE_SECONDS


async def test_every_connection_is_probed() -> None:
    script = Script([page(version="7")], [[HOLD]])
    async with watching(script) as (client, events, _):
        await take(events, 1)
        assert client._session._session is not None
        assert client._session._session.connector is not None
        factory = client._session._session.connector._socket_factory  # type: ignore[attr-defined]
        with factory((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))) as found:
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, probes, unacknowledged = (
                found.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            )
    assert idle + interval * probes <= 30
    assert unacknowledged <= 30_000


async def test_a_page_token_that_expired_begins_the_list_again() -> None:
    script = Script([page(namespace("a"), more="t"), (410, {"code": 410}), page(namespace("a"), namespace("b"))])
    async with watching(script) as (_, events, _pauses):
        assert await take(events, 1) == [listing("a", "b")]
    assert [q.get("continue") for q in script.list_queries] == [None, "t", None]


async def test_a_list_whose_token_repeats_is_an_error_and_begins_again() -> None:
    """A proxy that drops the query sends the first page for ever."""
    same = page(namespace("a"), more="t")
    bad = page({"metadata": 5}, more="u")
    script = Script([same, same, bad, bad, page(namespace("a"), namespace("b"))])
    async with watching(script) as (client, events, pauses):
        assert await take(events, 1) == [listing("a", "b")]
        assert (client.stats[kinds.NAMESPACE].errors, len(pauses.seconds)) == (2, 2)
    assert [q.get("continue") for q in script.list_queries] == [None, "t", None, "u", None]


async def test_pages_without_new_objects_do_not_go_on_for_ever() -> None:
    useless = [page(namespace("a"), more=f"t{number}") for number in range(11)]
    script = Script([*useless, page(namespace("b"))])
    async with watching(script) as (client, events, _):
        assert await take(events, 1) == [listing("b")]
        assert client.stats[kinds.NAMESPACE].errors == 1
    assert [q.get("continue") for q in script.list_queries] == [None, *(f"t{number}" for number in range(10)), None]


async def test_a_page_may_be_empty() -> None:
    """A selector leaves out all objects of a page."""
    empty = [page(more=f"t{number}") for number in range(9)]
    later = [page(more=f"u{number}") for number in range(5)]
    script = Script([*empty, page(namespace("a"), more="t"), *later, page(namespace("b"))])
    async with watching(script) as (client, events, _):
        assert await take(events, 1) == [listing("a", "b")]
        assert client.stats[kinds.NAMESPACE].errors == 0


async def test_a_cut_connection_goes_on_without_a_new_list() -> None:
    half = b'{"type": "ADDED", "object": {"meta'
    script = Script([page(version="7")])
    script.watches = [
        [event("ADDED", namespace("a", "8")), half, CUT],
        [event("ADDED", namespace("b", "9")), HOLD],
    ]
    async with watching(script) as (client, events, _):
        assert [getattr(e, "obj", None) for e in await take(events, 3)] == [
            None,
            Namespace("a", {}),
            Namespace("b", {}),
        ]
        assert client.stats[kinds.NAMESPACE].error == ""
    assert [q["resourceVersion"] for q in script.watch_queries] == ["7", "8"]
    assert len(script.list_queries) == 1


async def test_one_event_over_many_writes_and_many_in_one() -> None:
    big = namespace("big", "8", **{f"label{n}": "x" * 60 for n in range(4000)})
    line = json.dumps(event("ADDED", big)).encode() + b"\n"
    lines = b"".join(json.dumps(event("ADDED", namespace(n, "9"))).encode() + b"\n" for n in "abc")
    script = Script([page()], [[line[:1000], line[1000:100000], line[100000:], b"\n", lines, HOLD]])
    async with watching(script) as (_, events, _pauses):
        found = await take(events, 5)
    assert [e.obj.name for e in found[1:] if isinstance(e, Delta) and isinstance(e.obj, Namespace)] == ["big", *"abc"]


async def test_refusals_are_waited_out_with_growing_pauses() -> None:
    script = Script([(500, b"oops"), (403, {"code": 403, "message": "namespaces is forbidden"}), page(version="7")])
    script.watches = [503, 429, [event("ADDED", namespace("a"))]]
    async with watching(script) as (client, events, pauses):
        assert await take(events, 1) == [listing()]
        assert pauses.seconds == [0.1, 0.2]
        await take(events, 1)
        assert pauses.seconds[2:] == [0.1, 0.2]
        assert client.stats[kinds.NAMESPACE].errors == 4
    assert len(script.list_queries) == 3


async def test_a_watch_that_ends_at_once_and_says_nothing_is_not_hammered() -> None:
    script = Script([page()], [[], [], [], [event("ADDED", namespace("a"))]])
    async with watching(script) as (_, events, pauses):
        await take(events, 2)
    assert pauses.seconds == [0.1, 0.2, 0.4]


async def test_a_silent_connection_is_given_up() -> None:
    script = Script([page(version="7")], [[HOLD], [event("ADDED", namespace("a"))]])
    async with watching(script, options=Options(idle_seconds=0.05)) as (client, events, _):
        await take(events, 2)
        assert client.stats[kinds.NAMESPACE].errors == 0
    assert [q["resourceVersion"] for q in script.watch_queries] == ["7", "7"]


async def test_what_cannot_be_read_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bad = {"metadata": {"name": "bad", "resourceVersion": "12", "labels": 7}}
    gone = {"metadata": {"name": "gone", "labels": 7}}
    script = Script([page(namespace("a"), gone, version="6"), page(namespace("a"), bad, {"metadata": {}}, version="7")])
    script.watches = [
        410,
        [event("MODIFIED", bad), event("ADDED", namespace("b", "13")), event("DELETED", bad)],
        [HOLD],
    ]
    unread = Namespace("bad", {}, labels_unread=True)
    async with watching(script) as (client, events, _):
        stats = client.stats[kinds.NAMESPACE]
        await take(events, 1)
        assert list(stats.unread) == [ObjectRef("", "gone")]
        assert await take(events, 3) == [
            Listing(kinds.NAMESPACE, (Namespace("a", {}), unread)),
            Delta(Op.MODIFIED, unread),
            Delta(Op.ADDED, Namespace("b", {})),
        ]
        assert stats.unread == {ObjectRef("", "bad"): ("metadata.labels: Expected `object | null`, got `int`",)}
        # The same words about the same object: once.
        assert (stats.undecodable, stats.nameless) == (3, 1)
        await take(events, 1)
        assert stats.unread == {}
    assert caplog.text.count("Namespace bad: could not be read: metadata.labels: Expected") == 1
    assert "Namespace without a name: metadata.name: required" in caplog.text


async def test_a_deletion_without_a_name_means_listing_again() -> None:
    script = Script([page(version="7"), page(version="9")], [[event("DELETED", {"metadata": {}})]])
    async with watching(script) as (_, events, _pauses):
        assert await take(events, 2) == [listing(), listing()]


async def test_a_server_that_is_gone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    down = asyncio.Event()

    class Waiting(Pauses):
        async def __call__(self, seconds: float) -> None:
            await super().__call__(seconds)
            if len(self.seconds) == 3:
                down.set()
                await asyncio.sleep(0.01)

    pauses = Waiting()
    access = ClusterAccess(f"http://127.0.0.1:{port}")
    async with KubeClient(access, sleep=pauses, spread=lambda: 1.0) as client:
        events = client.watch(kinds.NAMESPACE)
        first = asyncio.ensure_future(anext(events))
        await down.wait()
        stats = client.stats[kinds.NAMESPACE]
        assert stats.error
        assert not stats.cut_off(time.monotonic() + CUT_OFF_SECONDS - 5)
        assert stats.cut_off(time.monotonic() + CUT_OFF_SECONDS)
        async with serving(Script([page(namespace("a"))]), port):
            async with asyncio.timeout(10):
                assert await first == listing("a")
            assert stats.error == ""
            assert not stats.cut_off(time.monotonic() + 2 * CUT_OFF_SECONDS)
            await events.aclose()  # type: ignore[attr-defined]
    assert caplog.text.count("trying again") == 1
    assert "connected again" in caplog.text


async def test_the_token_file_is_read_anew(tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    script = Script([page(), page()], [410])
    async with serving(script) as url, KubeClient(ClusterAccess(url, token_file=token), sleep=Pauses()) as client:
        events = client.watch(kinds.POD)
        await take(events, 1)
        token.write_text("two\n")
        await take(events, 1)
        await events.aclose()  # type: ignore[attr-defined]
    assert [h["Authorization"] for h in script.headers] == ["Bearer one", "Bearer two", "Bearer two"]
