"""Both programs on a veth: by tcx where this kernel has it, and the way there from clsact."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from nodenet.agent import attachment
from nodenet.agent.attachment import HOOKS, Mechanism
from nodenet.bpf import loader, tcx
from nodenet.link import netns, tc, veth
from nodenet.link.handle import Link

from .programs import NEXT, OK, SHOT, load
from .rtnl import qdiscs, rtnl

_TYPE = 0x88B5
_FRAME = b"\xff" * 6 + bytes(6) + _TYPE.to_bytes(2, "big")
BOTH = list(Mechanism)
Make = Callable[[int], dict[str, int]]


@dataclass(frozen=True, slots=True)
class Veth:
    """The node's end under `ifindex`, with the rtnetlink socket of its namespace, and sockets on both ends."""

    node: str
    link: Link
    ifindex: int
    mine: socket.socket
    theirs: socket.socket

    def attach(self, programs: dict[str, int], how: Mechanism | None = None) -> int:
        return netns.call(self.node, attachment.attach, self.link, self.ifindex, programs, how)

    def missing(self, programs: dict[str, int], how: Mechanism | None = None) -> list[str]:
        return netns.call(self.node, attachment.missing, self.link, self.ifindex, programs, how)

    def passes(self, *, to_pod: bool) -> bool:
        """Whether a frame gets across."""
        source, target = (self.mine, self.theirs) if to_pod else (self.theirs, self.mine)
        drain(target)
        try:
            source.send(_FRAME + b"x")
        except OSError:
            return False
        return bool(select.select([target], [], [], 0.3)[0]) and target.recv(100)[14:] == b"x"


def drain(sock: socket.socket) -> int:
    """How many frames had come."""
    count = 0
    try:
        while True:
            sock.recv(100)
            count += 1
    except BlockingIOError:
        return count


@pytest.fixture
def pair(two: tuple[str, str]) -> Iterator[Veth]:
    if not tcx.available():
        pytest.skip("this kernel has no tcx (6.6 has it)")
    with (
        Link(two[0]) as link,
        netns.opened(two[1]) as peer,
        netns.open_socket(two[0], socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_TYPE)) as mine,
        netns.open_socket(two[1], socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_TYPE)) as theirs,
    ):
        made = veth.create(link, "v0", "v1", peer)
        link.set("v0", state="up")
        with Link(two[1]) as other:
            other.set("v1", state="up")
        for sock, name in ((mine, "v0"), (theirs, "v1")):
            sock.bind((name, _TYPE))
            sock.setblocking(False)
        yield Veth(two[0], link, made.index, mine, theirs)


@pytest.fixture
def make() -> Iterator[Make]:
    """Loads programs of a verdict for both sides, under their names; closes them afterwards."""
    opened: list[int] = []

    def programs(verdict: int) -> dict[str, int]:
        found = {name: load(name, verdict) for name in HOOKS}
        opened.extend(found.values())
        return found

    yield programs
    for fd in opened:
        os.close(fd)


def names(pair: Veth) -> list[tuple[str, str]]:
    return [(entry.side.name, entry.name) for entry in netns.call(pair.node, tcx.attached, pair.ifindex)]


OURS = [("INGRESS", "endpoint_egress"), ("EGRESS", "endpoint_ingres")]


def test_another_build_takes_the_place_of_the_first(pair: Veth, make: Make) -> None:
    first, second = make(SHOT), make(NEXT)
    assert pair.missing(first) == list(HOOKS)
    assert pair.attach(first) == 2
    assert (pair.missing(first), pair.missing(second)) == ([], list(HOOKS))
    assert not pair.passes(to_pod=True)
    assert not pair.passes(to_pod=False)
    assert pair.attach(first) == 0
    assert pair.attach(second) == 2
    assert names(pair) == OURS
    assert pair.passes(to_pod=True)
    assert pair.passes(to_pod=False)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("removed", HOOKS)
def test_a_removed_program_is_missed_and_put_back(pair: Veth, make: Make, how: Mechanism, removed: str) -> None:
    programs = make(SHOT)
    assert pair.attach(programs, how) == 2
    if how is Mechanism.TCX:
        assert netns.call(pair.node, tcx.detach, pair.ifindex, HOOKS[removed].tcx, removed[:15])
    else:
        assert tc.detach(pair.link, pair.ifindex, HOOKS[removed].clsact, removed)
    assert pair.missing(programs, how) == [removed]
    assert pair.attach(programs, how) == 1
    assert pair.missing(programs, how) == []
    assert not pair.passes(to_pod=removed == "endpoint_ingress")


@pytest.mark.parametrize("how", BOTH)
def test_only_a_side_without_any_build_of_ours_gets_a_program(pair: Veth, make: Make, how: Mechanism) -> None:
    """A new agent isolates what the plugin alone made at once, and leaves the programs of the build before until its
    maps are filled."""
    old, new = make(NEXT), make(SHOT)

    def isolate() -> int:
        return netns.call(pair.node, attachment.attach_absent, pair.link, pair.ifindex, new)

    pair.attach(old, how)
    assert isolate() == 0
    assert pair.passes(to_pod=True)
    if how is Mechanism.TCX:
        assert netns.call(pair.node, tcx.detach, pair.ifindex, tcx.Side.EGRESS, "endpoint_ingres")
    else:
        assert tc.detach(pair.link, pair.ifindex, tc.Hook.EGRESS, "endpoint_ingress")
    assert isolate() == 1
    assert not pair.passes(to_pod=True)
    assert pair.passes(to_pod=False)


def test_others_programs_run_behind_ours_and_stay(pair: Veth, make: Make) -> None:
    programs = make(SHOT)
    theirs = load("somebody", OK)
    assert netns.call(pair.node, tcx.attach, pair.ifindex, tcx.Side.INGRESS, theirs)
    pair.attach(programs)
    assert names(pair) == [OURS[0], ("INGRESS", "somebody"), OURS[1]]
    assert not pair.passes(to_pod=False), "one that lets everything through must not end the list before ours"
    assert netns.call(pair.node, tcx.detach, pair.ifindex, tcx.Side.INGRESS, "endpoint_egress")
    assert names(pair) == [("INGRESS", "somebody"), OURS[1]]
    os.close(theirs)


def test_what_is_let_through_meets_the_queueing_discipline_behind(pair: Veth, make: Make) -> None:
    """The bandwidth plugin's: an ingress qdisc, made after us or before us."""
    pair.attach(make(NEXT))
    with rtnl(pair.node) as ip:
        ip.tc("add", "ingress", pair.ifindex, 0xFFFF0000)
    assert pair.passes(to_pod=False)
    drop = load("limit", SHOT)
    limit = {"handle": 1, "fd": drop, "name": "limit", "parent": 0xFFFF0000, "prio": 1, "direct_action": True}
    with rtnl(pair.node) as ip:
        ip.tc("add-filter", "bpf", pair.ifindex, **limit)
    assert not pair.passes(to_pod=False)
    assert pair.attach(make(SHOT)) == 2
    assert qdiscs(pair.node, pair.ifindex) == ["noqueue", "ingress"]
    os.close(drop)


def test_filters_of_a_previous_version_go_after_tcx_has_come(pair: Veth, make: Make) -> None:
    """Another's filter, and the clsact for it, stay."""
    old, new = make(SHOT), make(NEXT)
    other = load("somebody", OK)
    pair.attach(old, Mechanism.CLSACT)
    assert pair.attach(new) == 2
    assert tc.attached(pair.link, pair.ifindex) == []
    assert qdiscs(pair.node, pair.ifindex) == ["noqueue"]
    assert pair.passes(to_pod=True)
    tc.attach(pair.link, pair.ifindex, tc.Hook.EGRESS, other, "somebody")
    pair.attach(old, Mechanism.TCX)
    assert [entry.name for entry in tc.attached(pair.link, pair.ifindex)] == ["somebody"]
    assert not pair.passes(to_pod=True)
    os.close(other)


@pytest.mark.parametrize("to_pod", [True, False])
def test_no_frame_slips_through_while_programs_move_to_tcx(pair: Veth, make: Make, to_pod: bool) -> None:
    """Filters that drop, replaced by programs that drop, and those by another build, under a flood."""
    builds = [make(SHOT), make(SHOT)]
    source, target = (pair.mine, pair.theirs) if to_pod else (pair.theirs, pair.mine)
    pair.attach(builds[0], Mechanism.CLSACT)
    ended = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not ended.is_set():
            with suppress(OSError):  # dropped at egress, which the sender sees
                source.send(_FRAME)
            sent += 1

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for number in range(100):
            assert pair.attach(builds[number % 2]) == 2
            # Back: filters first, then the programs go.
            pair.attach(builds[number % 2], Mechanism.CLSACT)
            for name, hook in HOOKS.items():
                assert netns.call(pair.node, tcx.detach, pair.ifindex, hook.tcx, name[:15])
    finally:
        ended.set()
        thread.join()
    assert sent > 100
    assert drain(target) == 0
    assert loader.program_id(builds[1]["endpoint_egress"]) in {
        entry.program_id for entry in tc.attached(pair.link, pair.ifindex)
    }


def test_a_gone_interface_has_none(pair: Veth, make: Make) -> None:
    programs = make(NEXT)
    pair.attach(programs)
    pair.link.delete("v0")
    assert pair.missing(programs) == list(HOOKS)
    with pytest.raises(OSError, match="No such device"):
        pair.attach(programs)


def inspect(pair: Veth, programs: dict[str, int], how: Mechanism) -> attachment.Inspection | None:
    wanted = {name: loader.program_id(fd) for name, fd in programs.items()}
    return netns.call(pair.node, attachment.inspect, pair.link, pair.ifindex, wanted, how)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", list(HOOKS))
def test_a_program_that_is_taken_away_is_seen_and_put_back(pair: Veth, make: Make, how: Mechanism, name: str) -> None:
    programs = make(SHOT)
    pair.attach(programs, how)
    assert inspect(pair, programs, how) == attachment.Inspection()
    if how is Mechanism.TCX:
        assert netns.call(pair.node, tcx.detach, pair.ifindex, HOOKS[name].tcx, name[:15])
    else:
        assert netns.call(pair.node, tc.detach, pair.link, pair.ifindex, HOOKS[name].clsact, name)
    assert inspect(pair, programs, how) == attachment.Inspection((name,))
    assert pair.passes(to_pod=name == "endpoint_ingress")
    assert pair.attach(programs, how) == 1
    assert inspect(pair, programs, how) == attachment.Inspection()
    assert not pair.passes(to_pod=name == "endpoint_ingress")


def test_a_qdisc_that_is_deleted_takes_both_filters_with_it(pair: Veth, make: Make) -> None:
    programs = make(SHOT)
    pair.attach(programs, Mechanism.CLSACT)
    netns.run(pair.node, ["tc", "qdisc", "del", "dev", "v0", "clsact"], check=True)
    assert inspect(pair, programs, Mechanism.CLSACT) == attachment.Inspection(tuple(HOOKS))
    assert pair.attach(programs, Mechanism.CLSACT) == 2
    assert inspect(pair, programs, Mechanism.CLSACT) == attachment.Inspection()


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("name", list(HOOKS))
def test_a_program_in_front_of_ours_is_seen(
    pair: Veth, make: Make, how: Mechanism, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make(SHOT)
    pair.attach(ours, how)
    foreign = load("foreign", OK)
    try:
        number = loader.program_id(foreign)
        if how is Mechanism.TCX:
            netns.call(pair.node, tcx.attach, pair.ifindex, HOOKS[name].tcx, foreign)
        else:
            # At the same priority: the newest filter is asked first.
            monkeypatch.setattr(tc, "_HANDLE", 2)
            netns.call(pair.node, tc.attach, pair.link, pair.ifindex, HOOKS[name].clsact, foreign, "foreign")
        assert inspect(pair, ours, how) == attachment.Inspection((), {name: (number,)})
        assert pair.passes(to_pod=name == "endpoint_ingress"), "it is a way past our program"
    finally:
        os.close(foreign)


def test_an_xdp_program_in_front_of_ours_is_seen(pair: Veth, make: Make) -> None:
    ours = make(NEXT)
    pair.attach(ours)
    xdp = load("foreign", 2, kind=6)
    try:
        # XDP_FLAGS_SKB_MODE
        attach = ctypes.CDLL("libbpf.so.1").bpf_xdp_attach
        assert netns.call(pair.node, attach, pair.ifindex, xdp, 1 << 1, None) == 0
        number = loader.program_id(xdp)
        assert inspect(pair, ours, Mechanism.TCX) == attachment.Inspection((), {"endpoint_egress": (number,)})
    finally:
        os.close(xdp)


def test_a_veth_that_is_gone_lacks_nothing(pair: Veth, make: Make) -> None:
    programs = make(NEXT)
    pair.attach(programs)
    pair.link.delete("v0")
    for how in BOTH:
        assert inspect(pair, programs, how) is None
