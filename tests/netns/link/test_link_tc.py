"""eBPF programs on an interface through clsact."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from nodenet.link import netns, tc, veth
from nodenet.link.handle import Link, LinkError
from nodenet.link.tc import Hook

from .programs import OK, SHOT, load
from .rtnl import qdiscs, rtnl

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(two: tuple[str, str]) -> Iterator[tuple[Link, int, str]]:
    """A link in a namespace, the index of a veth in it, and the namespace of its other end."""
    with Link(two[0]) as link, netns.opened(two[1]) as peer:
        made = veth.create(link, "v0", "v1", peer)
        link.set("v0", state="up")
        with Link(two[1]) as other:
            other.set("v1", state="up")
        yield link, made.index, two[1]


def test_attach_replace_and_detach(two: tuple[str, str], node: tuple[Link, int, str]) -> None:
    link, ifindex, _ = node
    assert tc.attached(link, ifindex) == []
    first, second = load("nn_first", OK), load("nn_second", OK + 1)
    try:
        tc.attach(link, ifindex, Hook.INGRESS, first, "nn_from_pod")
        tc.attach(link, ifindex, Hook.EGRESS, second, "nn_to_pod")
        before = tc.attached(link, ifindex)
        assert [(entry.hook, entry.name) for entry in before] == [
            (Hook.INGRESS, "nn_from_pod"),
            (Hook.EGRESS, "nn_to_pod"),
        ]
        assert all(entry.program_id and len(entry.tag) == 16 for entry in before)
        tc.attach(link, ifindex, Hook.INGRESS, second, "nn_from_pod")
        after = tc.attached(link, ifindex)
        assert after[0].program_id == before[1].program_id
        assert len(after) == 2
    finally:
        os.close(first)
        os.close(second)
    assert len(tc.attached(link, ifindex)) == 2
    assert not tc.detach(link, ifindex, Hook.INGRESS, "nn_to_pod")
    assert tc.detach(link, ifindex, Hook.INGRESS, "nn_from_pod")
    assert tc.detach(link, ifindex, Hook.EGRESS, "nn_to_pod")
    assert not tc.detach(link, ifindex, Hook.EGRESS, "nn_to_pod")
    assert qdiscs(two[0], ifindex) == ["noqueue"]


def test_ingress_is_what_arrives_at_the_interface(two: tuple[str, str], node: tuple[Link, int, str]) -> None:
    link, ifindex, peer = node
    program = load("nn_drop", SHOT)
    frame = b"\xff" * 6 + bytes(6) + b"\x88\xb5"
    with (
        netns.open_socket(two[0], socket.AF_PACKET, socket.SOCK_RAW) as mine,
        netns.open_socket(peer, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as theirs,
    ):
        mine.bind(("v0", 0))
        theirs.bind(("v1", 0x88B5))
        theirs.settimeout(2)
        tc.attach(link, ifindex, Hook.INGRESS, program, "nn_drop")
        mine.send(frame + b"1")
        assert theirs.recv(100)[14:] == b"1", "a program on ingress must not see what leaves"
        tc.attach(link, ifindex, Hook.EGRESS, program, "nn_drop")
        with pytest.raises(OSError, match="No buffer space"):
            mine.send(frame + b"2")
        tc.detach(link, ifindex, Hook.EGRESS, "nn_drop")
        mine.send(frame + b"3")
        assert theirs.recv(100)[14:] == b"3", "a program on egress drops what leaves"
    os.close(program)


def test_a_missing_interface_is_told(node: tuple[Link, int, str]) -> None:
    link, _, _ = node
    assert tc.attached(link, 4711) == []
    program = load("nn_any", OK)
    with pytest.raises(LinkError, match="cannot add clsact to interface 4711: No such device"):
        tc.attach(link, 4711, Hook.INGRESS, program, "nn_any")
    os.close(program)


def test_an_ingress_qdisc_gives_way(two: tuple[str, str], node: tuple[Link, int, str]) -> None:
    """It has clsact's place and one side only: a filter for the other one would be put on the wrong side, and take the
    place of the first."""
    link, ifindex, _ = node
    program = load("nn_any", OK)
    with rtnl(two[0]) as ip:
        ip.tc("add", "ingress", ifindex, 0xFFFF0000)
    wanted = [tc.Program(Hook.INGRESS, program, "nn_from_pod"), tc.Program(Hook.EGRESS, program, "nn_to_pod")]
    removed = tc.attach_all(link, ifindex, wanted)
    assert removed == [
        f"interface {ifindex}: its ingress queueing discipline (a bandwidth limit for what its pod sends) was removed"
    ]
    assert [(entry.hook, entry.name) for entry in tc.attached(link, ifindex)] == [
        (Hook.INGRESS, "nn_from_pod"),
        (Hook.EGRESS, "nn_to_pod"),
    ]
    assert qdiscs(two[0], ifindex) == ["noqueue", "clsact"]
    assert tc.attach_all(link, ifindex, wanted) == []
    os.close(program)
