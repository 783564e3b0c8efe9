"""Thousands of agents do not ask at the same moment: at a rollout, after a restart of the API servers, in an outage."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodenet import kinds
from nodenet.kinds import API_KINDS
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.health import FOLLOWER_SECONDS, LAST_BACKOFF_SECONDS
from nodenet.kube.herd import LONGEST_SECONDS, NODES_FILE, SECONDS_PER_NODE, Herd, window
from nodenet.kube.reader import Options
from nodenet.kube.session import Session
from nodenet.store import Listing
from tests.unit.kube.api import CUT, HOLD, Pauses, Script, bookmark, event, namespace, page, serving, take, watching

NODES = 5000


def empty_list() -> Any:
    """An empty streaming list."""
    found = bookmark("9")
    found["object"]["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
    return found


def test_the_window_grows_with_the_cluster() -> None:
    assert window(0) == window(1) == 0.0
    assert 0 < window(2) < 0.01
    assert window(100) < 0.25
    # 500 agents begin in a second.
    assert window(NODES) == SECONDS_PER_NODE * (NODES - 1) == 9.998
    assert window(10**6) == LONGEST_SECONDS


def file_with(folder: Path, text: str = str(NODES)) -> Path:
    """What the agent's last life left."""
    file = folder / NODES_FILE
    file.write_text(text)
    return file


async def test_the_first_lists_of_all_kinds_wait_for_one_moment(tmp_path: Path) -> None:
    script = Script([page()])
    pauses = Pauses()
    file = file_with(tmp_path)
    async with (
        serving(script) as url,
        KubeClient(ClusterAccess(url), sleep=pauses, spread=lambda: 0.25, nodes_file=file) as client,
    ):
        watches = [client.watch(kind) for kind in API_KINDS]
        found = await asyncio.gather(*map(anext, watches))
        assert all(isinstance(first, Listing) for first in found)
        assert pauses.seconds == [0.25 * window(NODES)]
        assert script.counts == 0, "a question for the number would come from all agents at once"
        for watch in watches:
            await watch.aclose()  # type: ignore[attr-defined]


def herds(number: int, sleep: Callable[[float], Awaitable[None]], file: Path | None) -> list[Herd]:
    """Agents that start at the same moment, with a session that cannot be used."""
    chance = random.Random(1)
    return [Herd(Session(ClusterAccess("http://127.0.0.1:1")), sleep, chance.random, file) for _ in range(number)]


async def test_a_rollout_on_5000_nodes_is_spread(tmp_path: Path) -> None:
    """No second has more than 600 of the 5,000 agents, twice 500 would be a herd. No agent asks before its moment."""
    moments: Counter[int] = Counter()

    async def sleep(seconds: float) -> None:
        moments[int(seconds)] += 1

    agents = herds(NODES, sleep, file_with(tmp_path))
    await asyncio.gather(*(agent.before_first_list() for agent in agents))
    assert sorted(moments) == list(range(10))
    assert max(moments.values()) < 600
    assert moments.total() == NODES
    # API servers that start again: the same for each agent's next list.
    moments.clear()
    await asyncio.gather(*(agent.before_new_list() for agent in agents))
    assert (len(moments), moments.total()) == (10, NODES)
    assert max(moments.values()) < 600


async def test_a_new_node_asks_at_once(tmp_path: Path) -> None:
    """It has no rules and serves no pod until its lists have arrived. The cluster may be large."""
    script = Script([page()], nodes=NODES)
    file = tmp_path / NODES_FILE
    async with watching(script, nodes_file=file) as (_, events, pauses):
        assert await take(events, 1) == [Listing(kinds.NAMESPACE, ())]
        assert (pauses.seconds, script.counts) == ([], 0)
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "many", "-5", "\u00b2", "1.5"])
async def test_a_damaged_file_is_as_none(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(Script([page()]), nodes_file=file_with(tmp_path, text)) as (_, events, pauses):
        await take(events, 1)
        assert pauses.seconds == []
    assert "expected a number" in caplog.text


def test_a_file_with_a_huge_number_waits_no_longer_than_the_longest(tmp_path: Path) -> None:
    (herd,) = herds(1, Pauses(), file_with(tmp_path, "9" * 10000))
    assert window(herd.nodes) == LONGEST_SECONDS


async def test_one_node_waits_for_nothing() -> None:
    script = Script([page()], [410, [HOLD]])
    async with watching(script) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds == []


@pytest.mark.parametrize("broken", [429, 503, [CUT]])
async def test_after_an_outage_new_agents_are_spread(broken: Any) -> None:
    """After a power failure no agent knows the number of nodes, and all wait for the API servers."""
    script = Script([page()], nodes=NODES)
    script.streams = [broken, [empty_list(), HOLD]]
    async with watching(script) as (_, events, pauses):
        await take(events, 1)
        assert script.counts == 1
        assert pauses.seconds == [0.1, window(NODES)]


async def test_an_error_of_the_request_is_no_outage() -> None:
    script = Script([page()], nodes=NODES)
    script.streams = [403, [empty_list(), HOLD]]
    async with watching(script) as (_, events, pauses):
        await take(events, 1)
        assert (script.counts, pauses.seconds) == (0, [0.1])


async def test_a_count_that_is_not_allowed_is_done_without() -> None:
    """The list begins after the pause when the number of nodes is unknown."""
    script = Script([page()])
    script.nodes = -403
    script.streams = [503, [empty_list(), HOLD]]
    async with watching(script) as (client, events, pauses):
        assert await take(events, 1) == [Listing(kinds.NAMESPACE, ())]
        assert (pauses.seconds, client.stats[kinds.NAMESPACE].errors) == ([0.1], 1)
    assert script.counts == 1


async def test_an_overloaded_server_is_not_asked_for_lists_before_it_counts() -> None:
    script = Script([page()])
    script.nodes = -429
    script.streams = [429]
    async with watching(script) as (_, events, pauses):
        first = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(5):
            while script.counts < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (len(script.stream_queries), script.list_queries) == (1, [])
        script.nodes = 3
        assert await first == Listing(kinds.NAMESPACE, ())
        assert pauses.seconds[:3] == [0.1, 0.2, 0.4]
        assert pauses.seconds[-1] == window(3)


async def test_after_410_the_agents_spread_their_lists(tmp_path: Path) -> None:
    """API servers that start again have no history: every agent gets 410 at the same moment."""
    script = Script([page(), page(namespace("a"))], [410, [HOLD]])
    async with watching(script, nodes_file=file_with(tmp_path)) as (_, events, pauses):
        await take(events, 2)
        assert pauses.seconds == [window(NODES)] * 2


async def test_the_number_of_nodes_follows_the_cluster(tmp_path: Path) -> None:
    """The file is written when the number changes by more than a tenth."""

    def node(name: str) -> Any:
        return {"metadata": {"name": name, "resourceVersion": "11"}}

    file = tmp_path / NODES_FILE
    joined = [event("ADDED", node(f"m{number}")) for number in range(3)]
    script = Script([page(*(node(f"n{number}") for number in range(20)))])
    script.watches = [[*joined, event("MODIFIED", node("m1")), event("DELETED", node("n0")), HOLD]]
    async with watching(script, kinds.NODE, nodes_file=file) as (client, events, _):
        seen = []
        for _ in range(6):
            await take(events, 1)
            seen.append((client._herd.nodes, int(file.read_text())))
    assert seen == [(20, 20), (21, 20), (22, 20), (23, 23), (23, 23), (22, 23)]
    assert not (tmp_path / f".{NODES_FILE}.new").exists()


async def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [{"metadata": {"name": f"n{number}"}} for number in range(2)]
    async with watching(Script([page(*nodes)]), kinds.NODE, nodes_file=tmp_path / "no" / NODES_FILE) as (_, events, _p):
        await take(events, 1)
    assert "the number of nodes cannot be kept" in caplog.text


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
