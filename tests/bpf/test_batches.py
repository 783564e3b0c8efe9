"""Many entries in one call on the kernel's maps: the order, the number that was made, and maps without batches."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from nodenet import abi
from nodenet.bpf import libbpf
from nodenet.bpf.tables import BpfTable
from nodenet.errors import TableFullError
from nodenet.tables import BACKEND, STATE, BpfMap

pytestmark = pytest.mark.kernel
_NO_PREALLOC = 1


def _entries(count: int, port: int = 80) -> list[tuple[abi.U32, abi.AddressPort]]:
    return [(abi.U32(number), abi.AddressPort(ip_address("10.0.0.1"), port, 6)) for number in range(1, count + 1)]


def _created(of: BpfMap, entries: int, folder: Path, *flags: int) -> BpfTable:
    assert of.records is not None
    key, value = of.records
    sizes = {"nn_backend": (4, 20), "nn_state": (4, 8)}[of.name]
    options = libbpf.MapCreateOptions(sz=ctypes.sizeof(libbpf.MapCreateOptions), map_flags=sum(flags))
    made = libbpf.lib().bpf_map_create(int(of.type), of.name.encode(), *sizes, entries, ctypes.byref(options))
    fd = libbpf.check(made, f"create {of.name} of {key} and {value}")
    path = folder / of.name
    libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(path).encode()), "pin")
    os.close(fd)
    return BpfTable(of.name, path)


@pytest.fixture
def small(bpffs: Path) -> Iterator[BpfTable]:
    """A map of backends with room for 50, which fills up exactly: hash maps without preallocation count."""
    with closing(_created(BACKEND, 50, bpffs, _NO_PREALLOC)) as table:
        yield table
    (bpffs / "nn_backend").unlink()


def test_all_entries_are_made(small: BpfTable) -> None:
    assert small.update_many(_entries(50)) == 50
    assert dict(small.items()) == dict(_entries(50))
    assert small.update_many(_entries(50, 81)) == 50, "a full map still takes other values"
    assert dict(small.items()) == dict(_entries(50, 81))


def test_a_full_map_makes_the_first_ones_and_says_how_many(small: BpfTable) -> None:
    assert small.update_many(_entries(60)) == 50
    assert dict(small.items()) == dict(_entries(50)), "in their order"
    with pytest.raises(TableFullError, match="nn_backend is full"):
        small.update(*_entries(60)[50])
    assert small.update_many(_entries(60)[50:]) == 0


def test_the_later_of_two_values_stays(small: BpfTable) -> None:
    assert small.update_many([*_entries(1), *_entries(1, 81)]) == 2
    assert dict(small.items()) == dict(_entries(1, 81))


def test_a_value_of_another_size_is_refused(small: BpfTable) -> None:
    with pytest.raises(TypeError, match="another size"):
        small.update_many([(abi.U32(1), abi.U32(1))])


def test_a_map_whose_memory_is_shared_is_written_one_by_one(bpffs: Path) -> None:
    with closing(_created(STATE, 1, bpffs, 1 << 10)) as table:
        assert table.update_many([(abi.U32(0), abi.State(1, 1))]) == 0
    (bpffs / "nn_state").unlink()
