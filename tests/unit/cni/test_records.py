"""Endpoint files and endpoint ids."""

from __future__ import annotations

import threading
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner
from nodenet.cni.records import MAX_ENDPOINT_ID, Record, Records
from nodenet.model import Endpoint, ObjectRef


def record(records: Records, number: int) -> Record:
    owner = Owner(f"c{number}", "eth0")
    endpoint = Endpoint(
        endpoint_id=records.allocate_id(owner),
        container_id=owner.container_id,
        ifname="eth0",
        netns="/run/netns/x",
        host_ifname=f"veth{number}",
        host_ifindex=number + 10,
        mac="0a:58:0a:01:00:02",
        ips=(ip_address("10.1.0.2"), ip_address("fd01::2")),
        pod=ObjectRef("shop", f"web-{number}"),
        pod_uid="u",
    )
    made = Record(endpoint, "net", Path("/var/lib/cni/networks"))
    records.put(made)
    return made


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    records = Records(tmp_path)
    made = [record(records, number) for number in range(3)]
    assert [entry.endpoint.endpoint_id for entry in made] == [1, 2, 3]
    assert Records(tmp_path).all() == (made, [])
    assert records.get(made[1].owner) == made[1]
    records.drop(made[1].owner, made[1].endpoint.endpoint_id)
    assert records.get(made[1].owner) is None
    records.drop(made[2].owner)
    records.drop(made[2].owner)
    assert Records(tmp_path).all() == (made[:1], [])
    assert sorted(path.name for path in (tmp_path / "endpoints/ids").iterdir()) == ["1", "last"]


def test_a_damaged_record_is_told_and_left(tmp_path: Path) -> None:
    records = Records(tmp_path)
    made = record(records, 1)
    for name, text in (("a-eth0.json", "{"), ("b-eth0.json", "{}"), ("c-eth0.json", '{"endpointId": []}')):
        (tmp_path / "endpoints" / name).write_text(text)
    found, problems = records.all()
    assert found == [made]
    assert len(problems) == 3
    assert all("endpoint file" in problem for problem in problems)
    assert (tmp_path / "endpoints/a-eth0.json").exists()


def test_ids_go_round_and_survive_a_restart_and_a_crash(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = record(records, 1)
    records.drop(first.owner, 1)
    assert record(Records(tmp_path), 2).endpoint.endpoint_id == 2
    (tmp_path / "endpoints/ids/last").write_text(str(MAX_ENDPOINT_ID))
    # 1 was taken by somebody who crashed before the record was written; 2 is in use.
    (tmp_path / "endpoints/ids/1").symlink_to("gone-eth0")
    assert record(records, 3).endpoint.endpoint_id == 1
    (tmp_path / "endpoints/ids/last").write_text("garbage")
    assert record(records, 4).endpoint.endpoint_id == 3


def test_ids_fit_into_15_bits_and_a_larger_one_of_an_earlier_version_stays(tmp_path: Path) -> None:
    """The programs name owners by 15 bits of the number."""
    records = Records(tmp_path)
    old = record(records, 1)
    large = replace(old, endpoint=replace(old.endpoint, endpoint_id=40000))
    records.put(large)
    (tmp_path / "endpoints/ids/1").rename(tmp_path / "endpoints/ids/40000")
    for last in ("32767", "40000", "65535"):
        (tmp_path / "endpoints/ids/last").write_text(last)
        assert 1 <= record(records, int(last)).endpoint.endpoint_id <= 32767
    assert records.get(old.owner) == large
    records.drop(old.owner, 40000)
    assert not (tmp_path / "endpoints/ids/40000").is_symlink()


def test_busy_tells_of_a_crash_and_keeps_others_out(tmp_path: Path) -> None:
    records, owner = Records(tmp_path), Owner("c1", "eth0")
    with records.busy(owner) as crashed:
        assert not crashed
        with pytest.raises(CniError) as caught, records.busy(owner, timeout=0.03):
            pass
        assert caught.value.code == Code.TRY_AGAIN
    assert not (tmp_path / "endpoints/c1-eth0.busy").exists()
    (tmp_path / "endpoints/c1-eth0.busy").touch()
    with records.busy(owner) as crashed:
        assert crashed


def test_busy_lets_one_in_at_a_time(tmp_path: Path) -> None:
    records, owner = Records(tmp_path), Owner("c1", "eth0")
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with records.busy(owner):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list((tmp_path / "endpoints").glob("*.busy")) == []


def test_a_record_may_be_long(tmp_path: Path) -> None:
    """It holds the whole configuration where another IPAM plugin gave the addresses."""
    records = Records(tmp_path)
    made = replace(record(records, 1), delegation="x" * 200_000)
    records.put(made)
    assert records.get(made.owner) == made
    short = replace(made, delegation="")
    records.put(short)
    assert records.get(made.owner) == short
