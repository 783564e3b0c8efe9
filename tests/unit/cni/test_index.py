"""The index by owner: right whoever changes the leases, and never asked to read them all without need."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store, allocate, release
from nodenet.cni.ranges import range_sets
from nodenet.cni.reboot import reclaim

DUAL = range_sets({"ranges": [[{"subnet": "10.1.0.0/26"}], [{"subnet": "fd01::/64"}]]}, None)


def owner(number: int) -> Owner:
    return Owner(f"c{number}", "eth0")


def made(tmp_path: Path) -> Store:
    return Store(tmp_path / "leases", "net", tmp_path / "run")


def held(store: Store, number: int) -> list[str]:
    with store.locked():
        return [str(address) for address in store.held_by(owner(number))]


def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the leases that are read from now on."""
    seen: list[str] = []
    original = Store.owner

    def owner_of(self: Store, address: Any) -> Owner:
        seen.append(str(address))
        return original(self, address)

    monkeypatch.setattr(Store, "owner", owner_of)
    return seen


def test_no_verb_reads_every_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    for number in range(40):
        allocate(store, owner(number), DUAL, search=False)
    seen = reads(store, monkeypatch)
    allocate(store, owner(40), DUAL, search=True)
    assert release(store, owner(7), None) == [ip_address("10.1.0.9"), ip_address("fd01::9")]
    assert release(store, owner(7), None) == []
    assert release(store, owner(99), None) == []
    assert set(seen) == {"10.1.0.9", "fd01::9"}


def test_what_others_do_is_seen(tmp_path: Path) -> None:
    store = made(tmp_path)
    allocate(store, owner(1), DUAL)
    (store.folder / "10.1.0.30").write_bytes(b"c2\r\neth0")
    (store.folder / "10.1.0.31").write_bytes(b"c3")
    (store.folder / "fd01::2").unlink()
    assert held(store, 2) == ["10.1.0.30"]
    assert held(store, 3) == ["10.1.0.31"]
    assert held(store, 1) == ["10.1.0.2"]
    (store.folder / "10.1.0.30").unlink()
    assert held(store, 2) == []


def test_an_index_that_is_damaged_or_gone_is_made_anew(tmp_path: Path) -> None:
    store = made(tmp_path)
    allocate(store, owner(1), DUAL)
    (log,) = (tmp_path / "run/leases").glob("*.log")
    (seen,) = (tmp_path / "run/leases").glob("*.seen")
    log.write_bytes(log.read_bytes().replace(b"10.1.0.2", b"10.1\xff.2"))
    assert held(store, 1) == ["10.1.0.2", "fd01::2"]
    seen.write_text("garbage")
    log.write_bytes(b"garbage")
    assert held(store, 1) == ["10.1.0.2", "fd01::2"]
    log.unlink()
    assert held(store, 1) == ["10.1.0.2", "fd01::2"]
    seen.unlink()
    log.unlink()
    log.parent.rmdir()
    assert held(store, 1) == ["10.1.0.2", "fd01::2"]


def test_a_log_that_grows_too_long_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodenet.cni.index._MAX_LOG", 2000)
    store = made(tmp_path)
    for number in range(200):
        allocate(store, owner(number), DUAL, search=False)
        if number > 20:
            release(store, owner(number - 20), None)
    (log,) = (tmp_path / "run/leases").glob("*.log")
    assert log.stat().st_size < 4000
    assert held(store, 199) == ["10.1.0.21", "fd01::c9"]


def test_an_index_that_cannot_be_written_costs_speed_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    store = made(tmp_path)
    assert [str(lease.address.ip) for lease in allocate(store, owner(1), DUAL, search=False)] == ["10.1.0.2", "fd01::2"]
    with pytest.raises(OSError, match="run"):
        held(store, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "del", "foreign", "wipe"]), st.integers(0, 4)), max_size=14))
def test_any_history_gives_what_reading_all_gives(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    store = made(tmp_path_factory.mktemp("pool"))
    plain = Store(store.folder.parent, "net")
    for what, number in history:
        if what == "add":
            allocate(store, owner(number), DUAL)
        elif what == "del":
            release(store, owner(number), None)
        elif what == "foreign":
            # As the reference does it, with no word to us.
            plain.folder.mkdir(parents=True, exist_ok=True)
            path = plain.folder / f"10.1.0.{50 + number}"
            if path.exists():
                path.unlink()
            else:
                path.write_bytes(owner(number).text.encode())
        elif store.index:
            for path in (store.folder.parent.parent / "run/leases").glob("*"):
                path.unlink()
        if store.folder.exists():
            for other in range(5):
                with store.locked():
                    assert store.held_by(owner(other)) == plain.held_by(owner(other))


def test_a_lock_that_somebody_keeps_is_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodenet.cni.ipam.LOCK_SECONDS", 0.05)
    store, other = made(tmp_path), made(tmp_path)
    with other.locked(), pytest.raises(CniError, match="another process has held") as caught:
        allocate(store, owner(1), DUAL)
    assert caught.value.code == Code.TRY_AGAIN


class TestReboot:
    @pytest.fixture(autouse=True)
    def _boot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = tmp_path / "boot_id"
        self.boot.write_text("one\n")
        monkeypatch.setattr("nodenet.cni.reboot.BOOT_ID", self.boot)

    def test_leases_of_before_it_are_freed_unless_their_address_lives(self, tmp_path: Path) -> None:
        store = made(tmp_path)
        for number in (1, 2):
            allocate(store, owner(number), DUAL)
        assert reclaim(store, frozenset) == []
        assert reclaim(store, frozenset) == []
        self.boot.write_text("two\n")
        living = frozenset({ip_address("10.1.0.3")})
        assert set(map(str, reclaim(store, lambda: living))) == {"10.1.0.2", "fd01::2", "fd01::3"}
        assert {str(address) for address in store.taken()} == {"10.1.0.3"}
        assert held(store, 1) == []
        assert held(store, 2) == ["10.1.0.3"]
        assert reclaim(store, frozenset) == []

    def test_a_folder_seen_for_the_first_time_is_marked_only(self, tmp_path: Path) -> None:
        store = made(tmp_path)
        store.folder.mkdir(parents=True)
        (store.folder / "10.1.0.2").write_bytes(b"c1\r\neth0")
        assert reclaim(store, frozenset) == []
        assert {str(address) for address in store.taken()} == {"10.1.0.2"}

    def test_a_damaged_mark_says_nothing(self, tmp_path: Path) -> None:
        store = made(tmp_path)
        allocate(store, owner(1), DUAL)
        (store.folder / ".boot").write_bytes(b"on")
        assert reclaim(store, frozenset) == []
        assert len(store.taken()) == 2

    def test_nothing_is_freed_when_not_all_can_be_seen(self, tmp_path: Path) -> None:
        store = made(tmp_path)
        allocate(store, owner(1), DUAL)
        reclaim(store, frozenset)
        self.boot.write_text("two\n")
        assert reclaim(store, lambda: None) == []
        assert len(store.taken()) == 2
        assert len(reclaim(store, frozenset)) == 2
