"""Thousands of agents do not ask at the same moment: at a rollout, after a restart of the API servers, in an outage."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nodenet import kinds
from nodenet.kinds import API_KINDS
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.health import FOLLOWER_SECONDS, LAST_BACKOFF_SECONDS
from nodenet.kube.herd import LONGEST_SECONDS, SECONDS_PER_NODE, window
from nodenet.kube.reader import Options
from nodenet.store import Listing
from tests.unit.kube.api import HOLD, Pauses, Script, namespace, page, serving, take, watching

NODES = 5000


def test_the_window_grows_with_the_cluster() -> None:
    assert window(0) == window(1) == 0.0
    assert 0 < window(2) < 0.01
    assert window(100) < 0.25
    # 500 agents begin in a second.
    assert window(NODES) == SECONDS_PER_NODE * (NODES - 1) == 9.998
    assert window(10**6) == LONGEST_SECONDS


async def test_the_first_lists_of_all_kinds_wait_for_one_moment() -> None:
    script = Script([page()], nodes=NODES)
    pauses = Pauses()
    async with serving(script) as url, KubeClient(ClusterAccess(url), sleep=pauses, spread=lambda: 0.25) as client:
        watches = [client.watch(kind) for kind in API_KINDS]
        found = await asyncio.gather(*map(anext, watches))
        assert all(isinstance(first, Listing) for first in found)
        assert pauses.seconds == [0.25 * window(NODES)]
        assert script.counts == 1
        for watch in watches:
            await watch.aclose()  # type: ignore[attr-defined]


async def test_a_rollout_on_5000_nodes_is_spread() -> None:
    """The moments of 5,000 agents: no second has more than 600 of them, twice 500 would be a herd."""
    chance = random.Random(1)
    moments = Counter(int(window(NODES) * chance.random()) for _ in range(NODES))
    assert len(moments) == 10
    assert max(moments.values()) < 600


async def test_one_node_waits_for_nothing() -> None:
    script = Script([page()], [410, [HOLD]])
    async with watching(script) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds == []


async def test_a_count_that_is_not_allowed_is_done_without() -> None:
    """The first list begins at once when the number of nodes is unknown."""
    script = Script([page()])
    script.nodes = -403
    async with watching(script) as (client, events, pauses):
        assert await take(events, 1) == [Listing(kinds.NAMESPACE, ())]
        assert (pauses.seconds, client.stats[kinds.NAMESPACE].errors) == ([], 0)
    assert script.counts == 1


async def test_an_overloaded_server_is_not_asked_for_lists_before_it_counts() -> None:
    script = Script([page()])
    script.nodes = -429
    async with watching(script) as (_, events, pauses):
        first = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(5):
            while script.counts < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (script.stream_queries, script.list_queries) == ([], [])
        script.nodes = 3
        assert await first == Listing(kinds.NAMESPACE, ())
        assert pauses.seconds[:3] == [0.1, 0.2, 0.4]
        assert pauses.seconds[-1] == window(3)


async def test_after_410_the_agents_spread_their_lists() -> None:
    """API servers that start again have no history: every agent gets 410 at the same moment."""
    script = Script([page(), page(namespace("a"))], [410, [HOLD]], nodes=NODES)
    async with watching(script) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds == [window(NODES)] * 2


async def test_the_list_of_nodes_updates_the_window() -> None:
    nodes = [{"metadata": {"name": f"n{number}"}} for number in range(700)]
    script = Script([page(*nodes)], [410, [HOLD]])
    async with watching(script, kinds.NODE) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds == [window(700)]


@asynccontextmanager
async def unreachable(
    sleep: Callable[[float], object], nodes: int = 1
) -> AsyncIterator[tuple[Script, KubeClient, list[asyncio.Task[object]], int]]:
    """All watches of an agent whose server is not there, and the port where it will be."""
    script = Script([page()])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with KubeClient(
        ClusterAccess(f"http://127.0.0.1:{port}"),
        sleep=sleep,  # type: ignore[arg-type]
        spread=lambda: 1.0,
        options=Options(streams=False),
    ) as client:
        client._herd.nodes = nodes
        client._herd._started = True
        watches = [client.watch(kind) for kind in API_KINDS]
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(anext(watch)) for watch in watches]  # type: ignore[arg-type]
        try:
            yield script, client, tasks, port
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for watch in watches:
                await watch.aclose()  # type: ignore[attr-defined]


async def test_in_an_outage_one_watch_asks_for_all() -> None:
    pauses: list[float] = []
    others = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await (others.wait() if seconds >= FOLLOWER_SECONDS else asyncio.sleep(0))

    async with unreachable(sleep) as (script, _, tasks, port):
        async with asyncio.timeout(10):
            while len(pauses) < 30:  # noqa: ASYNC110
                await asyncio.sleep(0)
        rare = [seconds for seconds in pauses if seconds >= FOLLOWER_SECONDS]
        often = [seconds for seconds in pauses if seconds < FOLLOWER_SECONDS]
        assert rare == [FOLLOWER_SECONDS] * (len(API_KINDS) - 1)
        assert often[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LAST_BACKOFF_SECONDS]
        # The server is back: the one that asks wakes the others, which would sleep forever.
        async with serving(script, port), asyncio.timeout(5):
            assert all(isinstance(found, Listing) for found in await asyncio.gather(*tasks))


async def test_an_error_of_one_kind_does_not_hold_up_the_others() -> None:
    """The watch that asks for all is refused for its own sake: the others must not wait for its success."""
    others = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await (others.wait() if seconds >= FOLLOWER_SECONDS else asyncio.sleep(0.01))

    async with unreachable(sleep) as (_, client, tasks, port):
        asks = client._recovery
        async with asyncio.timeout(5):
            while asks._asks_for_all is None or sum(bool(s.error) for s in client.stats.values()) < len(API_KINDS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        first = asks._asks_for_all
        answers = Script([page()], refused=first.resource.plural)
        async with serving(answers, port), asyncio.timeout(5):
            rest = [task for kind, task in zip(API_KINDS, tasks, strict=True) if kind is not first]
            assert all(isinstance(found, Listing) for found in await asyncio.gather(*rest))
            assert client.stats[first].error.startswith("403")


async def test_pauses_in_an_outage_of_a_large_cluster() -> None:
    """5,000 agents whose pauses end at 4 s would be a herd when the server is back."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async with unreachable(sleep, NODES):
        async with asyncio.timeout(10):
            while len(pauses) < 60:  # noqa: ASYNC110
                await asyncio.sleep(0)
    often = [seconds for seconds in pauses if seconds < FOLLOWER_SECONDS]
    # Everyone loses the connection at the same moment: the first pause is spread too.
    assert often[0] == window(NODES) / 5
    assert max(often) == window(NODES)
