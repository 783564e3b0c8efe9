"""Rules of our own in nf_tables, written over the socket that rtnetlink uses too."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from nodenet.link import netns as namespaces
from nodenet.link import nft, nftables
from nodenet.link.handle import LinkError
from nodenet.link.netlink import CREATE, Netlink, RefusedError, Request, text

pytestmark = pytest.mark.kernel

SUBNET4, SUBNET6 = ip_network("10.9.0.0/24"), ip_network("fd09::/64")
WEB, DB, SIX = ip_address("10.9.0.2"), ip_address("10.9.0.3"), ip_address("fd09::2")
Inside = Callable[..., object]


@pytest.fixture
def inside(two: tuple[str, str]) -> Inside:
    return lambda function, *arguments: namespaces.call(two[0], function, *arguments)


def tables() -> list[tuple[int, str]]:
    with nftables.Nft() as kernel:
        return kernel.tables()


def test_addresses_come_and_go_and_the_last_takes_the_table_with_it(inside: Inside) -> None:
    for subnet, address in ((SUBNET4, WEB), (SUBNET4, DB), (SUBNET6, SIX), (SUBNET4, WEB)):
        inside(nft.masquerade, "pods", subnet, address)
        assert inside(nft.is_masqueraded, "pods", subnet, address)
    assert not inside(nft.is_masqueraded, "other", SUBNET4, WEB)
    inside(nft.remove_rules, "pods", "veth0", [WEB])
    assert not inside(nft.is_masqueraded, "pods", SUBNET4, WEB)
    assert inside(nft.is_masqueraded, "pods", SUBNET4, DB)
    inside(nft.remove_rules, "pods", "veth0", [DB, SIX, WEB])
    assert inside(tables) == []


def test_a_check_of_the_source_mac_is_replaced_and_forgotten(inside: Inside) -> None:
    assert not inside(nft.checks_source_mac, "lo")
    for mac in ("02:00:00:00:00:01", "02:00:00:00:00:02"):
        inside(nft.check_source_mac, "lo", mac)
        assert inside(nft.checks_source_mac, "lo")
    inside(nft.remove_rules, "pods", "lo", [])
    assert inside(tables) == []


def test_a_full_set_is_listed_whole(inside: Inside) -> None:
    """More than one packet of an answer: the last address alone keeps the table."""
    many = [ip_address("10.9.0.0") + n for n in range(2, 255)]
    for address in many:
        inside(nft.masquerade, "pods", SUBNET4, address)
    inside(nft.remove_rules, "pods", "veth0", many[:-1])
    assert inside(nft.is_masqueraded, "pods", SUBNET4, many[-1])


def test_adds_and_deletes_at_once_leave_what_was_asked_for(inside: Inside) -> None:
    start = threading.Barrier(4)

    def churn(number: int) -> None:
        own = ip_address(f"10.9.0.{10 + number}")
        start.wait()
        for _ in range(15):
            nft.masquerade("pods", SUBNET4, own)
            assert nft.is_masqueraded("pods", SUBNET4, own)
            nft.remove_rules("pods", "veth0", [own])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: inside(churn, number), range(4)))
    assert inside(tables) == []


def test_a_refusal_names_the_object_and_leaves_nothing(inside: Inside) -> None:
    name = "longer-than-any-interface"
    with pytest.raises(LinkError, match=f"cannot check source addresses of {name}: ") as caught:
        inside(nft.check_source_mac, name, "02:00:00:00:00:01")
    assert caught.value.code in (errno.ERANGE, errno.EINVAL, errno.ENAMETOOLONG)
    assert inside(tables) == []


def transact(*requests: Request, generation: int | None = None) -> None:
    with nftables.Nft() as kernel:
        kernel.change(list(requests), generation)


def table(name: str, family: int = 2) -> Request:
    return nftables.request(nftables.NEWTABLE, family, text(1, name), CREATE)


def test_a_transaction_is_all_or_nothing_and_names_what_failed(inside: Inside) -> None:
    missing = nftables.request(nftables.DELTABLE, 2, text(1, "nodenet-missing"))
    for requests, index in (
        ([table("nodenet-a"), missing, table("nodenet-b")], 2),
        ([table("nodenet-a"), missing], 2),
        ([missing, missing], 1),
    ):
        with pytest.raises(RefusedError) as caught:
            inside(transact, *requests)
        assert (caught.value.code, caught.value.index) == (errno.ENOENT, index)
        assert inside(tables) == []
    inside(transact, table("nodenet-a"), table("nodenet-b"))
    assert len(inside(tables)) == 2  # type: ignore[arg-type]


def test_a_transaction_on_an_old_ruleset_is_refused(inside: Inside) -> None:
    def generation() -> int:
        with nftables.Nft() as kernel:
            return kernel.generation()

    before = inside(generation)
    inside(transact, table("nodenet-a"))
    with pytest.raises(RefusedError) as caught:
        inside(partial(transact, table("nodenet-b"), generation=before))
    assert (caught.value.code, caught.value.index) == (nftables.ERESTART, 0)
    assert [name for _, name in inside(tables)] == ["nodenet-a"]  # type: ignore[attr-defined]


@pytest.fixture
def mute() -> Iterator[Netlink]:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.settimeout(0.01)
    kernel = Netlink(sock)
    yield kernel
    kernel.close()


def test_a_kernel_that_does_not_answer_is_an_error(mute: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mute, "_send", lambda _packets: None)
    with pytest.raises(RefusedError) as caught:
        mute.get(18, bytes(16))
    assert caught.value.code == errno.ETIMEDOUT


def test_a_closed_socket_is_an_error_of_the_same_kind(mute: Netlink) -> None:
    mute.close()
    with pytest.raises(RefusedError) as caught:
        mute.get(18, bytes(16))
    assert caught.value.code == errno.EBADF
