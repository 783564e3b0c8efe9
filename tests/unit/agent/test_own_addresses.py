"""The node's own addresses, with a fake kernel."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_address

import pytest

from nodenet.agent import addresses
from nodenet.agent.addresses import OwnAddresses
from nodenet.errors import CannotRunError
from nodenet.model import IPAddress

NODE, FIRST, SECOND = map(ip_address, ("192.0.2.1", "10.1.0.1", "10.2.0.1"))


class Kernel:
    """A fake kernel. `read` takes a snapshot of the addresses and returns it a little later."""

    def __init__(self, *has: IPAddress) -> None:
        self.has = set(has)
        self.asked = 0
        self.told: list[frozenset[IPAddress]] = []
        self.slow = 0.0
        self.broken = False

    async def read(self) -> frozenset[IPAddress]:
        self.asked += 1
        found = frozenset(self.has)
        await asyncio.sleep(self.slow)
        if self.broken:
            raise CannotRunError("the list changes too often for a consistent dump")
        return found

    def tell(self, addresses: frozenset[IPAddress]) -> None:
        self.told.append(addresses)


async def test_a_refresh_publishes_only_changes() -> None:
    kernel = Kernel(NODE)
    own = OwnAddresses(kernel.read, kernel.tell)
    await own.refresh()
    await own.refresh()
    assert kernel.told == [{NODE}]
    kernel.has.clear()
    await own.refresh()
    assert kernel.told == [{NODE}, frozenset()]


async def test_addresses_of_an_add_survive_a_refresh_that_began_before() -> None:
    kernel = Kernel(NODE)
    own = OwnAddresses(kernel.read, kernel.tell)
    refresh = asyncio.create_task(own.refresh())
    await asyncio.sleep(0)
    kernel.has.add(FIRST)
    own.add(frozenset({FIRST}))
    await refresh
    assert own.known == kernel.told[-1] == {NODE, FIRST}


async def test_two_adds_that_end_in_another_order_than_they_began() -> None:
    """Each ADD has made its own bridge."""
    kernel = Kernel(NODE)
    own = OwnAddresses(kernel.read, kernel.tell)
    await own.refresh()
    own.add(frozenset({SECOND}))
    own.add(frozenset({FIRST}))
    own.add(frozenset())
    assert kernel.told == [{NODE}, {NODE, SECOND}, {NODE, FIRST, SECOND}]


async def test_constant_changes_do_not_cause_constant_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the read fails because of the changes."""
    kernel = Kernel(NODE)
    kernel.slow, kernel.broken = 0.02, True

    class Storm:
        def __init__(self) -> None:
            self.ends = os.pipe()
            self.fd = self.ends[0]
            os.write(self.ends[1], b"x")

        def drain(self) -> None:
            """Leave the notification in place."""

        def close(self) -> None:
            for fd in self.ends:
                os.close(fd)

    monkeypatch.setattr(addresses, "address_changes", Storm)
    own = OwnAddresses(kernel.read, kernel.tell)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await own.keep()
    assert 2 <= kernel.asked <= 6
