"""How controllers run: one sync for many events, a retry after a failure, and no stop because of one object."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest

from nodenet.lab.apiserver.server import ApiServer
from nodenet.lab.apiserver.status import bad_request
from nodenet.lab.controllers.manager import Controller, Manager
from nodenet.lab.controllers.objects import Obj, key_of

from .control_plane import PATIENCE, service


class Looker(Controller):
    """Counts its syncs. The key `sick` fails the first two times, `broken` always."""

    kinds = ("Service",)

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.deleted: list[str] = []
        self.looked = asyncio.Event()

    def keys(self, kind: str, old: Obj | None, new: Obj | None) -> Iterable[tuple[str, str]]:
        if new is None and old is not None:
            self.deleted.append(old["metadata"]["name"])
        return (key_of(new or old or {}),)

    async def sync(self, key: tuple[str, str]) -> None:
        self.looks[key[1]] += 1
        self.looked.set()
        if key[1] == "sick" and self.looks["sick"] < 3:
            raise bad_request("not yet")
        if key[1] == "broken":
            raise KeyError("a bug")

    async def until(self, name: str, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.looks[name] < count:
                self.looked.clear()
                await self.looked.wait()


@pytest.fixture
def looker() -> Looker:
    return Looker()


@pytest.fixture
async def api(looker: Looker) -> AsyncIterator[ApiServer]:
    server = ApiServer(history=4)
    await server.client.create(service("early"))
    task = asyncio.create_task(Manager(server.client, [looker]).run())
    await looker.until("early", 1)
    yield server
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_events_are_one_look(api: ApiServer, looker: Looker) -> None:
    await api.client.create(service("web"))
    for number in range(3):
        await api.client.patch("Service", "web", {"metadata": {"labels": {"n": str(number)}}})
    await looker.until("web", 1)
    assert looker.looks["web"] == 1


async def test_a_failed_sync_is_retried(api: ApiServer, looker: Looker) -> None:
    await api.client.create(service("sick"))
    await looker.until("sick", 3)


async def test_a_bug_with_one_object_stops_no_other(
    api: ApiServer, looker: Looker, caplog: pytest.LogCaptureFixture
) -> None:
    await api.client.create(service("broken"))
    await looker.until("broken", 2)
    await api.client.create(service("web"))
    await looker.until("web", 1)
    assert "Looker ('default', 'broken'): not handled" in caplog.text


async def test_falling_behind_is_made_up_for(api: ApiServer, looker: Looker) -> None:
    """More changes at once than the history holds: the list tells what was missed, deletions too."""
    await api.client.delete("Service", "early")
    for number in range(20):
        await api.client.create(service(f"s{number}"))
    await looker.until("s0", 1)
    await looker.until("s19", 1)
    assert looker.deleted == ["early"]
