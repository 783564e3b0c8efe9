"""host-local leases: one owner per address whatever happens, and the reference plugin's own files."""

from __future__ import annotations

import multiprocessing
import threading
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store, allocate, release
from nodenet.cni.ranges import RangeSet, range_sets

SMALL = range_sets({"ranges": [[{"subnet": "10.1.0.0/29"}]]}, None)
DUAL = range_sets({"ranges": [[{"subnet": "10.1.0.0/28"}], [{"subnet": "fd01::/64"}]]}, None)


def owner(number: int) -> Owner:
    return Owner(f"c{number}", "eth0")


def take(store: Store, number: int, sets: tuple[RangeSet, ...] = SMALL) -> list[str]:
    return [str(lease.address.ip) for lease in allocate(store, owner(number), sets)]


def test_a_lease_is_what_the_reference_writes(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    assert take(store, 1, DUAL) == ["10.1.0.2", "fd01::2"]
    assert (tmp_path / "net/10.1.0.2").read_bytes() == b"c1\r\neth0"
    assert (tmp_path / "net/fd01::2").read_bytes() == b"c1\r\neth0"
    assert (tmp_path / "net/last_reserved_ip.0").read_bytes() == b"10.1.0.2"
    assert (tmp_path / "net/last_reserved_ip.1").read_bytes() == b"fd01::2"
    names = sorted(path.name for path in (tmp_path / "net").iterdir())
    assert names == ["10.1.0.2", "fd01::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]


def test_leases_that_the_reference_wrote_are_kept_and_freed(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "10.1.0.2").write_bytes(b"old\r\neth0")
    (folder / "10.1.0.3").write_bytes(b"older")  # before 0.8 the interface was not written
    (folder / "10.1.0.4").write_bytes(b"")  # what a crash of the reference leaves
    (folder / "last_reserved_ip.0").write_bytes(b"10.1.0.6")
    store = Store(tmp_path, "net")
    assert take(store, 1) == ["10.1.0.5"]
    assert release(store, Owner("old", "eth0"), None) == [ip_address("10.1.0.2")]
    assert release(store, Owner("older", "eth0"), None) == [ip_address("10.1.0.3")]
    assert store.taken() == {ip_address("10.1.0.4"), ip_address("10.1.0.5")}


def test_round_robin_does_not_give_a_freed_address_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    assert take(store, 1) == ["10.1.0.2"]
    release(store, owner(1), None)
    assert [take(store, number)[0] for number in (2, 3, 4, 5)] == ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    assert take(store, 6) == ["10.1.0.2"]


def test_exhausted_pool_names_network_and_range_and_keeps_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    sets = range_sets({"ranges": [[{"subnet": "fd01::/64"}], [{"subnet": "10.1.0.0/30"}]]}, None)
    take(store, 1, sets)
    with pytest.raises(
        CniError, match=r"network net: no free address in 10\.1\.0\.1-10\.1\.0\.2: all 1 are leased"
    ) as caught:
        take(store, 2, sets)
    assert caught.value.code == Code.POOL_EXHAUSTED
    assert set(store.leases().values()) == {owner(1)}


def test_the_same_owner_gets_the_same_address(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    assert take(store, 1, DUAL) == take(store, 1, DUAL)
    assert len(store.taken()) == 2


def test_requested_address(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    wanted = [ip_address("10.1.0.5")]
    assert str(allocate(store, owner(1), SMALL, wanted)[0].address) == "10.1.0.5/29"
    with pytest.raises(CniError, match=r"10\.1\.0\.5 is leased to container c1") as caught:
        allocate(store, owner(2), SMALL, wanted)
    assert caught.value.code == Code.ADDRESS_TAKEN
    for address, message in (("10.1.0.1", "is the gateway"), ("10.9.0.1", r"is not in 10\.1\.0\.1-10\.1\.0\.6")):
        with pytest.raises(CniError, match=message):
            allocate(store, owner(3), SMALL, [ip_address(address)])
    assert set(store.taken()) == set(wanted)


def test_release_leaves_what_is_anothers(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    take(store, 1)
    assert release(store, owner(2), [ip_address("10.1.0.2")]) == []
    assert release(store, Owner("c1", "eth1"), None) == []
    assert release(Store(tmp_path, "other"), owner(1), None) == []
    assert release(store, owner(1), [ip_address("10.1.0.2")]) == [ip_address("10.1.0.2")]
    assert release(store, owner(1), None) == []


def test_a_leftover_temporary_file_is_no_harm(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    take(store, 1)
    # As if a crash came between linking the lease and removing the temporary name: one file with two names.
    (tmp_path / "net/.lease").hardlink_to(tmp_path / "net/10.1.0.2")
    take(store, 2)
    assert store.owner(ip_address("10.1.0.2")) == owner(1)
    assert store.owner(ip_address("10.1.0.3")) == owner(2)


def test_a_damaged_round_robin_file_starts_the_round_anew(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    take(store, 1)
    (tmp_path / "net/last_reserved_ip.0").write_bytes(b"\xff garbage")
    assert take(store, 2) == ["10.1.0.3"]


def test_threads_and_processes_never_share_an_address(tmp_path: Path) -> None:
    sets = range_sets({"ranges": [[{"subnet": "10.1.0.0/24"}]]}, None)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_take_many, args=(tmp_path, base, sets)) for base in (0, 100)]
    threads = [threading.Thread(target=_take_many, args=(tmp_path, base, sets)) for base in (200, 300)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    leases = Store(tmp_path, "net").leases()
    assert len(leases) == 120
    assert len(set(leases.values())) == 120


def _take_many(folder: Path, base: int, sets: tuple[RangeSet, ...]) -> None:
    for number in range(base, base + 30):
        allocate(Store(folder, "net"), owner(number), sets, search=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=25))
def test_no_history_gives_an_address_twice(history: list[tuple[bool, int]]) -> None:
    held: dict[int, list[str]] = {}
    with TemporaryDirectory() as folder:
        store = Store(Path(folder), "net")
        for adding, number in history:
            if not adding:
                freed = release(store, owner(number), None)
                assert [str(address) for address in freed] == held.pop(number, [])
            elif number in held or len(held) < SMALL[0].usable:
                got = take(store, number)
                assert held.setdefault(number, got) == got
                assert "10.1.0.1" not in got
            else:
                with pytest.raises(CniError, match="no free address"):
                    take(store, number)
            leases = {str(address): other for address, other in store.leases().items()}
            assert leases == {address: owner(n) for n, got in held.items() for address in got}


@given(st.integers(2, 40), st.integers(0, 255), st.integers(0, 255))
def test_a_round_visits_every_address_once(gateway: int, last: int, size: int) -> None:
    item = {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.2", "gateway": f"10.1.0.{gateway}"}
    other = {"subnet": "10.2.0.0/29"}
    item["rangeEnd"] = f"10.1.0.{2 + size % 250}"
    (entry,) = range_sets({"ranges": [[item, other]]}, None)
    after = ip_address(f"10.1.0.{last}")
    visited = [address for address, _ in entry.after(after)]
    assert len(visited) == len(set(visited)) == entry.usable
    if entry.find(after) and after not in visited[-1:]:
        assert after == ip_address(item["gateway"])
