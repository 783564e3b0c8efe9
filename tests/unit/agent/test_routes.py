"""Routes to other nodes: no Node object can end the agent, and removed routes are restored."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from nodenet.agent.routes import RouteKeeper, Wanted, wanted_routes
from nodenet.link.handle import LinkError
from nodenet.link.routes import SyncResult
from nodenet.model import IPAddress, IPNetwork, Node
from nodenet.store import Op, Store

NET, GATE, OWN = IPv4Network("10.2.0.0/24"), IPv4Address("192.168.9.2"), IPv4Address("192.168.9.1")
WANTED = Wanted({NET: GATE}, (OWN,))


class Kernel:
    """Counts the calls of sync_routes and returns the answers that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[Mapping[IPNetwork, IPAddress], tuple[IPAddress, ...]]] = []
        self.answer: SyncResult | Exception = SyncResult()
        self.third = asyncio.Event()

    def keeper(self) -> RouteKeeper:
        return RouteKeeper(self.sync, 60.0, lambda: self.now)

    async def sync(self, wanted: Mapping[IPNetwork, IPAddress], own: tuple[IPAddress, ...]) -> SyncResult:
        self.calls.append((wanted, own))
        if len(self.calls) == 3:
            self.third.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_refusals_are_reported_and_retried_with_backoff() -> None:
    kernel = Kernel()
    keeper = kernel.keeper()
    kernel.answer = SyncResult(failed={NET: "Network is unreachable"})
    await keeper.update(WANTED)
    assert keeper.problems == ["route to 10.2.0.0/24: Network is unreachable"]
    for step, calls in ((0.4, 1), (0.2, 2), (0.6, 2), (0.5, 3)):
        kernel.now += step
        await keeper.update(WANTED)
        assert len(kernel.calls) == calls
    kernel.answer = LinkError("interface up0", errno.ENODEV)
    kernel.now += 10
    await keeper.update(WANTED)
    assert keeper.problems == ["routes to other nodes: interface up0: No such device"]
    kernel.answer = SyncResult()
    kernel.now += 10
    await keeper.update(WANTED)
    assert keeper.problems == []


async def test_routes_are_compared_at_each_resync_and_when_an_own_address_changes() -> None:
    kernel = Kernel()
    keeper = kernel.keeper()
    await keeper.update(WANTED)
    await keeper.update(WANTED)
    assert len(kernel.calls) == 1
    await keeper.update(Wanted(WANTED.routes, (GATE,)))
    assert kernel.calls[1] == (WANTED.routes, (GATE,))
    kernel.now += 61
    await keeper.update(Wanted(WANTED.routes, (GATE,)))
    assert len(kernel.calls) == 3


async def test_the_task_goes_on_after_a_refusal_without_any_change() -> None:
    kernel = Kernel()
    kernel.answer = LinkError("interface up0", errno.ENODEV)
    keeper = RouteKeeper(kernel.sync, 0.01)
    event = asyncio.Event()
    task = asyncio.create_task(keeper.keep(lambda: WANTED, lambda: event))
    async with asyncio.timeout(5):
        await kernel.third.wait()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_wanted() -> None:
    store = Store()
    store.apply(Op.ADDED, Node("node1", (OWN,), (IPv4Network("10.1.0.0/24"),)))
    store.apply(Op.ADDED, Node("node2", (GATE,), (NET,)))
    assert wanted_routes(store.snapshot(), "node1") == WANTED
    assert wanted_routes(store.snapshot(), "node3").own == ()
