"""The cluster of `python -m perf.scale`: the agent's client reads it, in both ways, and sees each change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web

from nodenet.kinds import API_KINDS
from nodenet.kube.client import KubeClient
from nodenet.kube.config import ClusterAccess
from nodenet.kube.decode import decode
from nodenet.store import Delta, Listing
from perf.scale.__main__ import report
from perf.scale.objects import CHANGES, World, make
from perf.scale.server import Server

WORLD = World(pods=40, services=30, nodes=3, apps=10, namespaces=2, policies=4)
KINDS = {kind.resource.plural: kind for kind in API_KINDS}


@asynccontextmanager
async def serving(streams: bool) -> AsyncIterator[tuple[Server, str]]:
    server = Server(WORLD, streams)
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_every_object_is_read_whole_and_is_another_one() -> None:
    for plural, count in WORLD.counts().items():
        kind = KINDS[plural]
        found = [decode(kind, msgspec.json.encode(make(WORLD, plural, index, 1))) for index in range(count)]
        assert all(one.obj is not None and not one.unread for one in found)
        assert len({one.ref for one in found}) == len({one.uid for one in found}) == count
    addresses = {make(WORLD, "pods", index, 1)["status"]["podIP"] for index in range(WORLD.pods)}
    assert len(addresses) == WORLD.pods


def test_objects_have_the_size_of_real_ones() -> None:
    size = len(json.dumps(make(WORLD, "pods", 0, 1), separators=(",", ":")))
    assert 6000 < size < 7000


@pytest.mark.parametrize("streams", [True, False])
async def test_the_client_gets_everything_and_the_changes(streams: bool) -> None:
    async with serving(streams) as (server, url), KubeClient(ClusterAccess(url), spread=lambda: 0.0) as client:
        for plural, count in WORLD.counts().items():
            watch = client.watch(KINDS[plural])
            first = await anext(watch)
            assert isinstance(first, Listing)
            assert len(first.objects) == count
            assert server.sent[plural] > 200 * count
            changes = [what for what, (changed, _) in CHANGES.items() if changed == plural]
            for round_, what in enumerate(changes, start=1):
                waiting = asyncio.ensure_future(anext(watch))
                while not server._watches.get(plural):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                async with aiohttp.ClientSession() as session:
                    await session.post(f"{url}/perf/change", params={"what": what, "count": "1", "round": str(round_)})
                async with asyncio.timeout(5):
                    delta = await waiting
                assert isinstance(delta, Delta)
                # Restarts and heartbeats do not change what the agent knows; labels and readiness do.
                assert (delta.obj == first.objects[0]) == (what in ("pod status", "node heartbeat"))
            await watch.aclose()  # type: ignore[attr-defined]
        assert bool(server.requests["refused stream pods"]) is not streams


async def test_optional_kinds_are_not_installed() -> None:
    """Otherwise the agent would wait for their first list."""
    optional = [kind for kind in API_KINDS if kind.optional]
    assert {kind.resource.plural for kind in API_KINDS} == {*WORLD.counts(), *(k.resource.plural for k in optional)}
    async with serving(True) as (_, url), KubeClient(ClusterAccess(url), spread=lambda: 0.0) as client:
        for kind in optional:
            watch = client.watch(kind)
            async with asyncio.timeout(5):
                assert await anext(watch) == Listing(kind, ())
            await watch.aclose()  # type: ignore[attr-defined]


def test_the_report_names_the_memory_of_one_object() -> None:
    def found(rss: int, pods: int, services: int) -> dict[str, object]:
        usage = {"cpu": 1.0, "rss": rss, "peak": rss, "maps": 1 << 20}
        world = {"pods": pods, "services": services}
        sent = {"sent": {"pods": 5}}
        return {"world": world, "seconds": 2.0, "started": usage, "settled": usage, "api": sent, "changes": {}}

    runs = {"empty": found(1000, 0, 0), "pods": found(1000 + 2048 * 4, 4, 0), "Services": found(1000 + 1024 * 2, 0, 2)}
    text = list(report(runs))
    assert "memory for each pod: 2.00 KiB" in text
    assert "memory for each Service with its slice: 1.00 KiB" in text
