"""Addresses that come and go are told of."""

from __future__ import annotations

import select
from ipaddress import ip_interface

import pytest

from nodenet.link import addresses, netns
from nodenet.link.handle import Link

pytestmark = pytest.mark.kernel


def test_a_change_of_an_address_is_told_and_nothing_else(two: tuple[str, str]) -> None:
    changes = netns.call(two[0], addresses.changes)
    try:

        def told() -> bool:
            ready = bool(select.select([changes.fd], [], [], 0.2)[0])
            changes.drain()
            return ready

        with Link(two[0]) as link:
            loopback = link.require("lo").index
            assert not told()
            for address in ("192.0.2.7/32", "2001:db8::7/128"):
                addresses.add(link, loopback, ip_interface(address))
                assert told()
                assert not told()
                addresses.remove(link, loopback, ip_interface(address))
                assert told()
            link.set("lo", mtu=1400)
            assert not told()
    finally:
        changes.close()


def test_a_storm_is_noted_in_pieces_and_ends(two: tuple[str, str]) -> None:
    """More changes than the socket has room for."""
    changes = netns.call(two[0], addresses.changes)
    wanted = [ip_interface(f"10.{n >> 8}.{n & 255}.1/32") for n in range(2000)]
    try:
        with Link(two[0]) as link:
            loopback = link.require("lo").index
            for first in range(0, len(wanted), 200):
                link.batch(*(("add", addresses.add_request(loopback, one)) for one in wanted[first : first + 200]))
            rounds = 0
            while select.select([changes.fd], [], [], 0.2)[0]:
                changes.drain()
                rounds += 1
            assert 1 <= rounds <= 4
            addresses.remove(link, loopback, wanted[0])
            assert select.select([changes.fd], [], [], 0.2)[0]
    finally:
        changes.close()
