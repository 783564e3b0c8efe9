"""Pins: the second load adopts, changed configuration reloads, a map of another shape is replaced and named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodenet import abi
from nodenet.bpf import build, libbpf, loader
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.errors import CannotRunError

pytestmark = pytest.mark.kernel


@pytest.fixture
def pins(bpffs: Path) -> Iterator[Pins]:
    pins = Pins(bpffs / "loader")
    try:
        yield pins
    finally:
        pins.remove()


def load(pins: Pins, cache: Path, **changes: object) -> loader.Loaded:
    return loader.load(build.build_all(cache), loader.DatapathConfig(**changes), pins)  # type: ignore[arg-type]


def ids(loaded: loader.Loaded) -> dict[str, int]:
    return {name: loader.program_id(fd) for name, fd in loaded.programs.items()}


def test_second_load_adopts_the_same_programs_and_maps(pins: Pins, bpf_cache: Path) -> None:
    first = load(pins, bpf_cache)
    table = BpfTable("nn_backend", pins.map("nn_backend"))
    table.update(abi.U32(1), abi.AddressPort(abi.unpack_addr(bytes(16)), 1, 6))
    second = load(pins, bpf_cache)
    assert (first.adopted, second.adopted) == (False, True)
    assert ids(first) == ids(second)
    assert table.count() == 1
    table.close()
    loader.close(first)
    loader.close(second)


def test_changed_configuration_loads_new_programs_over_the_same_maps(pins: Pins, bpf_cache: Path) -> None:
    first = load(pins, bpf_cache)
    second = load(pins, bpf_cache, redirect_peer=False)
    assert not second.adopted
    assert second.replaced_maps == ()
    assert set(ids(first).values()).isdisjoint(ids(second).values())
    loader.prune(second, pins)
    assert [p.name for p in pins.progs.iterdir()] == [second.key]
    loader.close(first)
    loader.close(second)


def test_a_map_of_another_size_is_replaced_and_named(pins: Pins, bpf_cache: Path) -> None:
    loader.close(load(pins, bpf_cache))
    second = load(pins, bpf_cache, sizes={"nn_endpoint": 2048})
    assert second.replaced_maps == ("nn_endpoint",)
    table = BpfTable("nn_endpoint", pins.map("nn_endpoint"))
    assert table.max_entries == 2048
    table.close()
    loader.close(second)


def pinned_map_id(pins: Pins, name: str) -> int:
    fd = libbpf.obj_get(str(pins.map(name)))
    try:
        return int(libbpf.info(fd, libbpf.MapInfo).id)
    finally:
        os.close(fd)


def test_programs_are_adopted_only_with_the_maps_that_are_pinned(pins: Pins, bpf_cache: Path) -> None:
    """Back to an earlier size before anybody pruned: that build's programs are pinned still, its maps are not."""
    loader.close(load(pins, bpf_cache, sizes={"nn_endpoint": 1024}))
    loader.close(load(pins, bpf_cache, sizes={"nn_endpoint": 2048}))
    back = load(pins, bpf_cache, sizes={"nn_endpoint": 1024})
    assert not back.adopted
    assert back.replaced_maps == ("nn_endpoint",)
    for name in loader.TC_PROGRAMS:
        assert pinned_map_id(pins, "nn_endpoint") in libbpf.map_ids(back.programs[name])
    again = load(pins, bpf_cache, sizes={"nn_endpoint": 1024})
    assert again.adopted
    loader.close(back)
    loader.close(again)


def test_a_load_that_fails_leaves_maps_and_programs_as_they_were(pins: Pins, bpf_cache: Path, tmp_path: Path) -> None:
    first = load(pins, bpf_cache)
    before = {path.name: pinned_map_id(pins, path.name) for path in pins.maps.iterdir()}
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"no ELF")
    objects = {**build.build_all(bpf_cache), "zz": broken}
    with pytest.raises(CannotRunError, match=r"the kernel refused zz\.bpf\.o"):
        loader.load(objects, loader.DatapathConfig(sizes={"nn_endpoint": 2048, "nn_ct": 4096, "nn_ct_slot": 204}), pins)
    assert {path.name: pinned_map_id(pins, path.name) for path in pins.maps.iterdir()} == before
    assert not pins.new_maps.exists()
    again = load(pins, bpf_cache)
    assert again.adopted
    loader.close(first)
    loader.close(again)


def test_what_the_programs_wrote_is_carried_into_a_map_of_another_size(pins: Pins, bpf_cache: Path) -> None:
    loader.close(load(pins, bpf_cache))
    old = BpfTable("nn_sock_choice", pins.map("nn_sock_choice"))
    keys = [abi.SockRevnatKey.unpack(bytes([n]) * old.info.key_size) for n in range(1, 200)]
    for number, key in enumerate(keys):
        old.update(key, abi.U32(number))
    old.close()
    second = load(pins, bpf_cache, sizes={"nn_sock_choice": 8192, "nn_backend": 1024})
    assert set(second.replaced_maps) == {"nn_sock_choice", "nn_backend"}
    assert second.carrying.copied == {"nn_sock_choice": len(keys)}
    new = BpfTable("nn_sock_choice", pins.map("nn_sock_choice"))
    assert dict(new.items()) == {key: abi.U32(number) for number, key in enumerate(keys)}
    new.close()
    loader.close(second)


def test_threads_read_one_table_without_each_others_values(pins: Pins, bpf_cache: Path) -> None:
    loaded = load(pins, bpf_cache)
    table = BpfTable("nn_backend", pins.map("nn_backend"))
    entries = {n: abi.AddressPort(abi.unpack_addr(bytes(12) + n.to_bytes(4)), n, 6) for n in range(1, 9)}
    for number, entry in entries.items():
        table.update(abi.U32(number), entry)

    def read(number: int) -> bool:
        return all(table.get(abi.U32(number)) == entries[number] for _ in range(2000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(entries)) as pool:
            assert all(pool.map(read, entries))
    finally:
        sys.setswitchinterval(interval)
        table.close()
        loader.close(loaded)


def test_cgroup_links_are_adopted_updated_and_moved(pins: Pins, bpf_cache: Path, cgroup: Path) -> None:
    first = load(pins, bpf_cache)
    assert loader.attach_cgroup(first, cgroup, pins) == list(loader.CGROUP_PROGRAMS)
    assert loader.attach_cgroup(first, cgroup, pins) == []
    second = load(pins, bpf_cache, trace_events=False)
    assert loader.attach_cgroup(second, cgroup, pins) == list(loader.CGROUP_PROGRAMS)
    child = cgroup / "child"
    child.mkdir()
    try:
        assert loader.attach_cgroup(second, child, pins) == list(loader.CGROUP_PROGRAMS)
    finally:
        pins.remove()
        child.rmdir()
    loader.close(first)
    loader.close(second)


@pytest.fixture
def held(pins: Pins, bpf_cache: Path) -> Iterator[tuple[loader.Loaded, dict[str, int]]]:
    """Loaded programs, and the descriptors of two maps, as an agent holds them."""
    loaded = load(pins, bpf_cache)
    tables = [BpfTable(name, pins.map(name)) for name in ("nn_backend", "nn_revnat")]
    yield loaded, {table.name: table.fd for table in tables}
    for table in tables:
        table.close()
    loader.close(loaded)


def test_a_pin_that_is_gone_is_made_again(
    pins: Pins, held: tuple[loader.Loaded, dict[str, int]], bpf_cache: Path
) -> None:
    loaded, maps = held
    known: dict[Path, tuple[int, int]] = {}
    assert loader.check_pins(loaded, maps, pins, known) == loader.PinCheck()
    assert len(known) == len(maps) + len(loaded.programs)
    pins.map("nn_backend").unlink()
    shutil.rmtree(pins.progs / loaded.key)
    found = loader.check_pins(loaded, maps, pins, known)
    assert found.problems == ()
    assert found.repinned == ("map nn_backend", *(f"program {name}" for name in loaded.programs))
    assert loader.check_pins(loaded, maps, pins, known) == loader.PinCheck()
    again = load(pins, bpf_cache)
    assert again.adopted, "the next agent starts from the pins"
    assert ids(again) == ids(loaded)
    loader.close(again)


def test_a_pin_of_another_object_is_reported_and_left_alone(
    pins: Pins, held: tuple[loader.Loaded, dict[str, int]]
) -> None:
    loaded, maps = held
    known: dict[Path, tuple[int, int]] = {}
    assert loader.check_pins(loaded, maps, pins, known) == loader.PinCheck()
    program = pins.progs / loaded.key / "endpoint_egress"
    for path, other in ((pins.map("nn_backend"), maps["nn_revnat"]), (program, maps["nn_revnat"])):
        path.unlink()
        libbpf.check(libbpf.lib().bpf_obj_pin(other, str(path).encode()), "pin")
    # Again and again: what an earlier call found right says nothing about another pin at its place.
    for _ in range(2):
        found = loader.check_pins(loaded, maps, pins, known)
        assert found.repinned == ()
        assert found.problems == (
            f"map nn_backend: its pin {pins.map('nn_backend')} is wrong: it leads to another object",
            f"program endpoint_egress: its pin {program} is wrong: it leads to another object",
        )


def test_pins_outside_a_bpf_file_system_are_one_problem(
    tmp_path: Path, held: tuple[loader.Loaded, dict[str, int]]
) -> None:
    (problem,) = loader.check_pins(*held, Pins(tmp_path), {}).problems
    assert f"{tmp_path} is not in a BPF file system any more" in problem
    assert list(tmp_path.iterdir()) == []


def test_a_socket_program_that_is_detached_or_swapped_is_attached_again(
    pins: Pins, held: tuple[loader.Loaded, dict[str, int]], cgroup: Path
) -> None:
    loaded, _ = held
    loader.attach_cgroup(loaded, cgroup, pins)
    link = libbpf.obj_get(str(pins.links / "sock_connect6"))
    libbpf.check(libbpf.lib().bpf_link_detach(link), "detach")
    os.close(link)
    assert loader.attach_cgroup(loaded, cgroup, pins) == ["sock_connect6"]
    (pins.links / "sock_connect4").unlink()
    (pins.links / "sock_sendmsg4").rename(pins.links / "sock_connect4")
    assert loader.attach_cgroup(loaded, cgroup, pins) == ["sock_connect4", "sock_sendmsg4"]
    assert loader.attach_cgroup(loaded, cgroup, pins) == []


def test_a_link_that_cannot_be_pinned_leaves_no_descriptor_and_no_program(
    tmp_path: Path, pins: Pins, held: tuple[loader.Loaded, dict[str, int]], cgroup: Path
) -> None:
    loaded, _ = held
    elsewhere = Pins(tmp_path)
    elsewhere.links.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="pin link sock_connect4"):
            loader.attach_cgroup(loaded, cgroup, elsewhere)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert loader.attach_cgroup(loaded, cgroup, pins) == list(loader.CGROUP_PROGRAMS)


def test_folder_outside_a_bpf_file_system_is_refused(tmp_path: Path, bpf_cache: Path) -> None:
    with pytest.raises(CannotRunError, match="is not in a BPF file system"):
        load(Pins(tmp_path / "pins"), bpf_cache)
    assert not (tmp_path / "pins").exists()


def test_full_map_is_told_with_its_name_and_key(pins: Pins, bpf_cache: Path) -> None:
    loaded = load(pins, bpf_cache, sizes={"nn_endpoint": 1})
    table = BpfTable("nn_endpoint", pins.map("nn_endpoint"))
    entry = abi.always(abi.EndpointEntry(1, 2, 3, 0, "02:00:00:00:00:01"))
    table.update(abi.AddressKey(abi.unpack_addr(bytes(15) + b"\1")), entry)
    with pytest.raises(CannotRunError, match=r"map nn_endpoint is full \(1 entries\).*::2"):
        table.update(abi.AddressKey(abi.unpack_addr(bytes(15) + b"\2")), entry)
    table.close()
    loader.close(loaded)


_WITHOUT_BTF = """
import shutil
import subprocess
import sys
from pathlib import Path
from nodenet.bpf import build, loader
from nodenet.bpf.pins import Pins
from nodenet.errors import CannotRunError
objects, root = build.build_all(Path(sys.argv[1])), Path(sys.argv[2])
try:
    loader.load(objects, loader.DatapathConfig(kernel_structs=True), Pins(root / "checked"))
except CannotRunError:
    print("refused", flush=True)
loaded = loader.load(objects, loader.DatapathConfig(kernel_structs=False), Pins(root / "not-checked"))
print(sorted(loaded.programs))
"""


def test_a_kernel_without_btf_takes_the_programs_without_the_check(bpffs: Path, bpf_cache: Path) -> None:
    """In a mount namespace where the kernel's description of itself is hidden."""
    hide = 'mount --bind /dev/null /sys/kernel/btf/vmlinux && exec "$@"'
    command = [sys.executable, "-c", _WITHOUT_BTF, str(bpf_cache), str(bpffs / "no-btf")]
    (bpffs / "no-btf").mkdir()
    try:
        result = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hide, "sh", *command], capture_output=True, text=True, check=True
        )
    finally:
        shutil.rmtree(bpffs / "no-btf")
    assert result.stdout.splitlines() == [
        "refused",
        str(sorted([*loader.TC_PROGRAMS, *loader.UPLINK_PROGRAMS, *loader.CGROUP_PROGRAMS, loader.SOCK_SERVICE])),
    ]
