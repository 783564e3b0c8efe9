"""nodenet/tables.py against the maps that the objects declare."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from nodenet import tables
from nodenet.bpf import build, libbpf, loader
from nodenet.bpf.pins import Pins


class Declared(NamedTuple):
    type: int
    key_size: int
    value_size: int
    max_entries: int


@pytest.fixture(scope="module")
def declared(bpf_cache: Path) -> dict[str, Declared]:
    """What the compiler wrote down, by name; every object that has a map says the same of it."""
    lib = libbpf.lib()
    found: dict[str, Declared] = {}
    for path in build.build_all(bpf_cache).values():
        handle = lib.bpf_object__open_file(str(path).encode(), None)
        pointer = lib.bpf_object__next_map(handle, None)
        while pointer:
            if not lib.bpf_map__is_internal(pointer):
                name = lib.bpf_map__name(pointer).decode()
                one = Declared(*(getattr(lib, f"bpf_map__{field}")(pointer) for field in Declared._fields))
                assert found.setdefault(name, one) == one, name
            pointer = lib.bpf_object__next_map(handle, pointer)
        lib.bpf_object__close(handle)
    return found


def test_the_objects_have_the_declared_maps_and_no_others(declared: dict[str, Declared]) -> None:
    assert set(declared) == set(tables.MAPS)


@pytest.mark.parametrize("name", tables.MAPS)
def test_type_and_size(declared: dict[str, Declared], name: str) -> None:
    one = tables.MAPS[name]
    assert (one.type, one.size.entries) == (declared[name].type, declared[name].max_entries)


@pytest.mark.parametrize("name", tables.KEYED)
def test_records_have_the_sizes_of_keys_and_values(declared: dict[str, Declared], name: str) -> None:
    records, sizes = tables.KEYED[name], declared[name]
    for record, size in ((records.key, sizes.key_size), (records.value, sizes.value_size)):
        assert len(record.unpack(b"\1" * size).pack()) == size


@pytest.mark.kernel
def test_the_programs_use_every_declared_map(bpffs: Path, bpf_cache: Path) -> None:
    pins = Pins(bpffs / "tables")
    loaded = loader.load(build.build_all(bpf_cache), loader.DatapathConfig(), pins)
    try:
        used = {libbpf.map_name(number).decode() for fd in loaded.programs.values() for number in libbpf.map_ids(fd)}
    finally:
        loader.close(loaded)
        pins.remove()
    assert {name for name in used if name in tables.MAPS} == set(tables.MAPS)
