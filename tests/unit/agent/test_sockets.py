"""When the agent sweeps for sockets whose backend has left their Service."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest

from nodenet.abi import AddressPort, MemberKey
from nodenet.agent import sockets
from nodenet.agent.sockets import Ended, SocketKeeper, Sweep, lost
from nodenet.evolved import evolve

A, B = AddressPort(ip_address("10.0.0.1"), 53, 17), AddressPort(ip_address("10.0.0.2"), 53, 17)
ONE, TWO = MemberKey(1, 7), MemberKey(2, 7)


def test_what_counts_as_a_loss() -> None:
    first = evolve({}, {ONE: A, TWO: A})
    grown, shrunk, renumbered = evolve(first, {MemberKey(1, 8): B}), evolve(first, {ONE: None}), evolve(first, {ONE: B})
    assert lost(None, first)
    assert not lost(first, first)
    assert not lost(first, grown)
    assert lost(first, shrunk)
    assert lost(first, renumbered)
    # Without knowing what changed: every entry is compared.
    assert not lost(dict(first), dict(grown))
    assert lost(dict(first), dict(shrunk))
    assert lost(shrunk, evolve(shrunk, {TWO: None}))


class Looks:
    """Sweeps that end one socket each while `stale` has any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        self.stale = 0
        self.failed: tuple[str, ...] = ()
        self.changed = asyncio.Condition()
        monkeypatch.setattr(sockets, "sweep", self.sweep)
        monkeypatch.setattr(sockets.asyncio, "to_thread", self.at_once)
        monkeypatch.setattr(sockets, "SECOND_SWEEP_SECONDS", 0.0)

    async def at_once(self, function: Any, *arguments: Any) -> Any:
        result = function(*arguments)
        async with self.changed:
            self.changed.notify_all()
        return result

    def sweep(self, places: Any, members: Any, revnat: Any) -> Sweep:
        self.seen.append(members)
        ended = Counter({Ended("pod a/b", 1, A): self.stale}) if self.stale else Counter[Ended]()
        self.stale = 0
        return Sweep(ended, self.failed)

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.seen) >= count)


def keeper(available: bool = True, resync: float = 1000.0) -> SocketKeeper:
    return SocketKeeper(list, None, lambda number: f"Service {number}", resync, available)  # type: ignore[arg-type]


async def test_it_looks_at_the_start_and_after_each_loss(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks, kept = Looks(monkeypatch), keeper()
    caplog.set_level(logging.INFO)
    task = asyncio.create_task(kept.keep())
    first = evolve({}, {ONE: A, TWO: A})
    kept.members(first)
    await looks.wait(2)
    kept.members(grown := evolve(first, {MemberKey(1, 8): B}))
    shrunk = evolve(grown, {ONE: None})
    looks.stale = 3
    kept.members(shrunk)
    await looks.wait(4)
    task.cancel()
    assert looks.seen == [first, first, shrunk, shrunk]
    assert kept.ended == 3
    assert "ended 3 UDP sockets of pod a/b: 10.0.0.1:53 is no longer a backend of Service 1" in caplog.text


async def test_it_looks_as_often_as_the_maps_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, kept = Looks(monkeypatch), keeper(resync=0.001)
    looks.failed = ("UDP sockets of pod a/b could not be listed: no",)
    kept.members({})
    task = asyncio.create_task(kept.keep())
    await looks.wait(4)
    assert kept.problems == list(looks.failed)
    looks.failed = ()
    await looks.wait(len(looks.seen) + 2)
    assert kept.problems == []
    task.cancel()


async def test_a_kernel_without_sock_destroy_is_reported_and_not_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks, kept = Looks(monkeypatch), keeper(available=False)
    kept.members({ONE: A})
    await kept.keep()
    assert looks.seen == []
    assert "no SOCK_DESTROY" in caplog.text
