"""Content of maps that nothing can fill again comes into the maps that replace them: real maps, real older programs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from nodenet import abi, tables
from nodenet.abi.carried import NEVER_JUDGED
from nodenet.abi.numbers import CtFlag
from nodenet.bpf import build, carry, layout, libbpf, loader
from nodenet.bpf.pins import Pins, map_info, opened
from nodenet.bpf.tables import BpfTable
from nodenet.model import Direction
from nodenet.tables import Carried, Layout, Previous
from nodenet.tables.conversion import by_name

from .conftest import TC_OK, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

SERVER, CLIENT = "10.0.0.1", "10.0.9.9"
SERVER_IDENTITY, CLIENT_IDENTITY = 1000, 2000
ISOLATED = abi.EndpointFlag.ISOLATED_INGRESS | abi.EndpointFlag.ISOLATED_EGRESS

# nn_ct_entry as a version before this one had it: without `created`.
OLDER_VALUE = "last_seen:4 revision:4 rule_id:4 rev_nat_index:4 direction:1 flags:1 endpoint_id:2"
WITHOUT_CREATED = (
    ("lib/abi.h", "\t__u32 created; /* seconds of CLOCK_MONOTONIC */\n", ""),
    ("lib/ct_create.h", "= view->endpoint_id,\n\t\t\t\t     .created = context->now };", "= view->endpoint_id };"),
)
# nn_ct_entry as a later version may have it.
WITH_MORE = (("lib/abi.h", "\t__u32 created; /*", "\t__u32 packets;\n\t__u32 created; /*"),)
OF_TYPE = "\t__uint(type, BPF_MAP_TYPE_{});\n\t__uint(max_entries, 131072);\n\t__type(key, struct nn_ct_key);"
# The same size, with another meaning of the same place.
RENAMED = (
    ("lib/abi.h", "\t__u32 revision; /* generation of", "\t__u32 verdict; /* generation of"),
    ("lib/ct_create.h", ".revision = ", ".verdict = "),
    ("lib/police.h", "entry->revision", "entry->verdict"),
    ("lib/conntrack.h", "entry->revision", "entry->verdict"),
)

Edits = tuple[tuple[str, str, str], ...]


@pytest.fixture
def variant(tmp_path: Path) -> Callable[[Edits], dict[str, Path]]:
    """Objects of the sources with some texts replaced."""

    def made(edits: Edits) -> dict[str, Path]:
        folder = Path(shutil.copytree(build.source_dir(), tmp_path / f"variant-{abs(hash(edits))}"))
        for name, old, new in edits:
            path = folder / name
            assert old in path.read_text(), f"{name} has no text {old!r}"
            path.write_text(path.read_text().replace(old, new))
        return {program: build.build(program, tmp_path / "cache", folder) for program in build.PROGRAMS}

    return made


@pytest.fixture
def root(bpffs: Path) -> Iterator[Path]:
    folder = bpffs / "carry"
    try:
        yield folder
    finally:
        Pins(folder).remove()


def declare(monkeypatch: pytest.MonkeyPatch, *previous: Previous) -> None:
    """As a version would whose nn_ct had other layouts before."""
    assert tables.CT.carried
    carried = replace(tables.CT.carried, previous=previous)
    monkeypatch.setitem(tables.MAPS, "nn_ct", replace(tables.CT, carried=carried))  # type: ignore[arg-type]


def older() -> Previous:
    assert tables.CT.carried
    now = tables.CT.carried.layout
    return Previous(Layout(now.key, OLDER_VALUE), by_name(OLDER_VALUE, now.value))


def server(datapath: Datapath) -> None:
    """A pod that accepts calls of one client on port 80 and has no allowed destination."""
    datapath.endpoint(SERVER, SERVER_IDENTITY, number=1, flags=ISOLATED)
    datapath.identity(CLIENT, CLIENT_IDENTITY)
    datapath.allow(SERVER_IDENTITY, CLIENT_IDENTITY, Direction.INGRESS, protocol=6, port=80)


def opening(port: int) -> Packet:
    return IP(src=CLIENT, dst=SERVER) / TCP(sport=port, dport=80, flags="S")


def answer(port: int) -> Packet:
    """From the middle of the connection. Only conntrack knows that the client opened it."""
    return IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=port, flags="A", seq=7, ack=9)


def ct_key(port: int) -> abi.CtKey:
    return abi.CtKey(ip_address(SERVER), ip_address(CLIENT), 80, port, 6)


@pytest.fixture
def upgraded(
    root: Path, bpf_cache: Path, variant: Callable[[Edits], dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Datapath, Datapath]]:
    """The programs of an older version with a connection on port 1000, and those of this one, just loaded."""
    with ExitStack() as stack:
        old = Datapath(root, bpf_cache, loader.DatapathConfig(), variant(WITHOUT_CREATED))
        stack.callback(old.close)
        server(old)
        assert old.received(opening(1000)) == TC_OK
        declare(monkeypatch, older())
        new = Datapath(root, bpf_cache, loader.DatapathConfig())
        stack.callback(new.close)
        yield old, new


def test_an_upgrade_that_changes_the_record_keeps_established_connections(upgraded: tuple[Datapath, Datapath]) -> None:
    _, new = upgraded
    assert new.loaded.replaced_maps == ("nn_ct", "nn_ct_slot")
    assert new.loaded.carrying.copied == {"nn_ct": 1}
    entry = new.tables["nn_ct"].get(ct_key(1000))
    assert (entry.direction, entry.endpoint_id, entry.created) == (Direction.INGRESS, 1, 0)
    assert entry.revision == NEVER_JUDGED, "the new rules judge it"
    assert new.sent(answer(1000)) == TC_OK
    assert new.tables["nn_ct"].get(ct_key(1000)).revision == 0
    assert new.sent(answer(1001)) != TC_OK, "an unknown connection"


def test_what_old_programs_write_after_the_copy_is_copied_after_the_switch(
    upgraded: tuple[Datapath, Datapath],
) -> None:
    old, new = upgraded
    assert old.received(opening(1001)) == TC_OK
    assert old.sent(answer(1000)) == TC_OK, "an old entry that changes after the copy: it has seen a reply"
    assert new.tables["nn_ct"].get(ct_key(1001)) is None
    assert new.loaded.carrying.finish() == {"nn_ct": 2}
    assert new.tables["nn_ct"].get(ct_key(1000)).flags == CtFlag.SEEN_REPLY
    assert new.sent(answer(1001)) == TC_OK
    assert not new.pins.old_maps.exists()


def test_a_carried_connection_is_judged_by_the_new_rules(upgraded: tuple[Datapath, Datapath]) -> None:
    _, new = upgraded
    new.tables["nn_policy"].delete(
        abi.PolicyKey(96, SERVER_IDENTITY, CLIENT_IDENTITY, Direction.INGRESS, 6, 80),
    )
    assert new.sent(answer(1000)) == TC_SHOT


def test_a_later_versions_map_is_read_by_name(
    root: Path, bpf_cache: Path, variant: Callable[[Edits], dict[str, Path]]
) -> None:
    """A downgrade: this version knows nothing of the layout."""
    with ExitStack() as stack:
        later = Datapath(root, bpf_cache, loader.DatapathConfig(), variant(WITH_MORE))
        stack.callback(later.close)
        server(later)
        assert later.received(opening(1000)) == TC_OK
        back = Datapath(root, bpf_cache, loader.DatapathConfig())
        stack.callback(back.close)
        assert back.loaded.carrying.copied == {"nn_ct": 1}
        assert back.tables["nn_ct"].get(ct_key(1000)).created > 0
        assert back.sent(answer(1000)) == TC_OK


def test_a_record_of_the_same_size_with_other_members_is_another_layout(
    root: Path, bpf_cache: Path, variant: Callable[[Edits], dict[str, Path]]
) -> None:
    with ExitStack() as stack:
        other = Datapath(root, bpf_cache, loader.DatapathConfig(), variant(RENAMED))
        stack.callback(other.close)
        server(other)
        assert other.received(opening(1000)) == TC_OK
        new = Datapath(root, bpf_cache, loader.DatapathConfig())
        stack.callback(new.close)
        assert new.loaded.replaced_maps == ("nn_ct", "nn_ct_slot")
        assert new.loaded.carrying.copied == {}
        assert new.tables["nn_ct"].count() == 0


@pytest.mark.parametrize(("type_", "copied"), [("LRU_HASH", {"nn_ct": 1}), ("LRU_PERCPU_HASH", {})])
def test_a_map_of_another_type_is_read_unless_it_has_a_value_for_each_cpu(
    root: Path, bpf_cache: Path, variant: Callable[[Edits], dict[str, Path]], type_: str, copied: dict[str, int]
) -> None:
    with ExitStack() as stack:
        edits = (("lib/conntrack.h", OF_TYPE.format("HASH"), OF_TYPE.format(type_)),)
        other = Datapath(root, bpf_cache, loader.DatapathConfig(), variant(edits))
        stack.callback(other.close)
        server(other)
        assert other.received(opening(1000)) == TC_OK
        new = Datapath(root, bpf_cache, loader.DatapathConfig())
        stack.callback(new.close)
        assert new.loaded.carrying.copied == copied
        assert new.tables["nn_ct"].count() == len(copied)


# Sizes, without programs: the copies themselves.


def load(pins: Pins, cache: Path, **sizes: int) -> loader.Loaded:
    return loader.load(build.build_all(cache), loader.DatapathConfig(sizes=sizes), pins)


def ct_entry(last_seen: int, **changes: Any) -> abi.CtEntry:
    return abi.CtEntry(last_seen, 2, 7, 0, Direction.INGRESS, CtFlag(0), 1, 5)._replace(**changes)


def test_a_smaller_map_gets_the_newest_entries(root: Path, bpf_cache: Path) -> None:
    pins = Pins(root)
    loader.close(load(pins, bpf_cache, nn_ct=8192))
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as old:
        for port in range(6000):
            # Neighbours in age are not neighbours in the order of writing.
            old.update(ct_key(port), ct_entry(1 + port * 7919 % 6000))
    second = load(pins, bpf_cache, nn_ct=2048)
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as new:
        kept = sorted(entry.last_seen for _, entry in new.items())
    # A fifth of the new map stays free.
    assert second.carrying.copied == {"nn_ct": 2048 - 2048 // 5}
    assert kept == list(range(6000 - len(kept) + 1, 6001))
    assert len(kept) == 2048 - 2048 // 5


def test_a_full_map_of_one_second_is_carried_as_far_as_there_is_room(root: Path, bpf_cache: Path) -> None:
    """last_seen has seconds: many entries may be equally old. A plain hash map refuses what does not fit."""
    pins = Pins(root)
    loader.close(load(pins, bpf_cache, nn_ct=4096))
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as old:
        for port in range(4096):
            old.update(ct_key(port), ct_entry(5))
    second = load(pins, bpf_cache, nn_ct=1024)
    assert second.carrying.copied == {"nn_ct": 1024 - 1024 // 5}
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as new, closing(BpfTable("nn_ct", pins.replaced()[0][1])) as old:
        # The old programs refresh every connection before they are replaced.
        for port in range(4096):
            old.update(ct_key(port), ct_entry(6))
        second.carrying.finish()
        assert new.count() == 1024
    loader.close(second)
    loader.close(second)


class Crashed(BaseException):
    """The process is gone: nothing that handles errors may handle this."""


class Steps:
    """Dies before the `at`-th step that changes something in the kernel (from 0); None: never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.made = 0
        places = [(Pins, "_keep"), (Pins, "clear_old_maps"), (Path, "rename"), (Path, "rmdir")]
        for owner, name in [*places, (carry.Transfer, "first"), (carry.Transfer, "last")]:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if self.made == self.at:
                raise Crashed
            self.made += 1
            return step(*args)

        return run


# first, _keep, renames of nn_ct and nn_ct_slot, rmdir of maps-new, rename of the programs, last, clear_old_maps.
STEPS = 8


@pytest.mark.parametrize("at", [*range(STEPS), None])
def test_a_crash_at_any_step_loses_no_entry(
    root: Path, bpf_cache: Path, monkeypatch: pytest.MonkeyPatch, at: int | None
) -> None:
    pins, ports = Pins(root), iter(range(1, 100))
    written: dict[abi.CtKey, abi.CtEntry] = {}
    loader.close(load(pins, bpf_cache, nn_ct=8192))
    with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as old:

        def old_programs_write() -> None:
            key, entry = ct_key(next(ports)), ct_entry(1000)
            old.update(key, entry)
            written[key] = entry._replace(revision=NEVER_JUDGED)

        old_programs_write()
        steps = Steps(monkeypatch)
        steps.at = at
        try:
            last = load(pins, bpf_cache, nn_ct=4096)
            old_programs_write()
            last.carrying.finish()
            assert at is None
            assert steps.made == STEPS
        except Crashed:
            steps.at = None
            # The old programs are still attached, before and after the next start has copied.
            old_programs_write()
            last = load(pins, bpf_cache, nn_ct=4096)
            old_programs_write()
            last.carrying.finish()
        with closing(BpfTable("nn_ct", pins.map("nn_ct"))) as new:
            assert new.max_entries == 4096
            assert dict(new.items()) == written
        assert not pins.old_maps.exists()
        assert not pins.new_maps.exists()
        loader.close(last)


def test_two_switches_that_were_interrupted_are_both_made_up_for(root: Path, bpf_cache: Path) -> None:
    """Programs of three builds are attached to different pods. Of one key the entry that was seen last is kept, or that
    of the newest programs where entries do not say when they were seen."""
    pins = Pins(root)
    socket = abi.SockRevnatKey(7, ip_address(SERVER), 80, 17)
    with ExitStack() as stack:

        def opened_table(name: str) -> BpfTable:
            return stack.enter_context(closing(BpfTable(name, pins.map(name))))

        connections, choices = [], []
        for size in (8192, 4096, 2048):
            stack.callback(loader.close, load(pins, bpf_cache, nn_ct=size, nn_sock_choice=size))
            connections.append(opened_table("nn_ct"))
            choices.append(opened_table("nn_sock_choice"))
            connections[-1].update(ct_key(size), ct_entry(100))
            for number, table in enumerate(connections):
                table.update(ct_key(1), ct_entry(200 - number, rule_id=number))
            for number, table in enumerate(choices):
                table.update(socket, abi.U32(number))
        # Not by the newest programs.
        other = socket._replace(cookie=8)
        for number, table in enumerate(choices[:2]):
            table.update(other, abi.U32(number))
        last = load(pins, bpf_cache, nn_ct=1024, nn_sock_choice=1024)
        stack.callback(loader.close, last)
        last.carrying.finish()
        found = {key.remote_port: entry for key, entry in opened_table("nn_ct").items()}
        assert set(found) == {1, 8192, 4096, 2048}
        assert (found[1].last_seen, found[1].rule_id) == (200, 0)
        assert dict(opened_table("nn_sock_choice").items()) == {socket: abi.U32(2), other: abi.U32(1)}


def test_an_object_that_is_no_map_of_ours_is_not_copied(root: Path, bpf_cache: Path) -> None:
    pins = Pins(root)
    first = load(pins, bpf_cache, nn_sock_choice=4096)
    for name, other in (("nn_sock_choice", "nn_revnat"), ("nn_ct", "../progs/" + first.key + "/endpoint_egress")):
        pins.map(name).unlink()
        with opened(pins.maps / other) as fd:
            libbpf.check(libbpf.lib().bpf_obj_pin(fd, str(pins.map(name)).encode()), "pin")
    second = load(pins, bpf_cache, nn_sock_choice=8192)
    assert set(second.replaced_maps) == {"nn_sock_choice", "nn_ct", "nn_ct_slot"}
    assert second.carrying.copied == {}
    loader.close(first)
    loader.close(second)


def test_the_layouts_of_carried_maps_are_those_of_the_objects(root: Path, bpf_cache: Path) -> None:
    """A layout that differs has changed: the declared one goes to `previous`, with its converter."""
    pins = Pins(root)
    loader.close(load(pins, bpf_cache))
    declared = {name: one.carried.layout for name, one in tables.MAPS.items() if isinstance(one.carried, Carried)}
    found = {name: layout.of_map(map_info(pins.map(name))) for name in declared}
    assert found == declared
    for name, parts in declared.items():
        info = map_info(pins.map(name))
        sizes = [sum(int(member.rpartition(":")[2]) for member in part.split()) for part in parts]
        assert sizes == [info.key_size, info.value_size], "the compiler added no padding of its own"
