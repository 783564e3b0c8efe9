"""Packets from outside that were sent in somebody else's name, and what belongs to the node's own sockets."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.bpf.packet_run import run_packet
from nodenet.link import addresses, netns
from nodenet.link.handle import Link

from .conftest import TC_OK, TC_REDIRECT, TC_SHOT, TEST_IFINDEX, Datapath
from .outside import CLIENT_PORT, NODE_PORT, PROOF, Outside, ask, serving
from .test_service_packets import TARGET, ends, monotonic

pytestmark = pytest.mark.kernel

_NAMES = itertools.count()


@pytest.fixture(scope="module")
def served(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    yield from serving(bpffs, bpf_cache, "forged")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def outside(request: pytest.FixtureRequest, served: Datapath) -> Outside:
    return Outside(served, request.param)


@pytest.fixture(params=[TCP, UDP], ids=["tcp", "udp"])
def layer(request: pytest.FixtureRequest) -> type[Packet]:
    kind: type[Packet] = request.param
    return kind


def middle(layer: type[Packet], sport: int = CLIENT_PORT, dport: int = NODE_PORT, flags: str = "A") -> Packet:
    packet = TCP(sport=sport, dport=dport, flags=flags) if layer is TCP else UDP(sport=sport, dport=dport)
    return packet / Raw(b"more")


@contextmanager
def own_socket(outside: Outside, layer: type[Packet], port: int) -> Iterator[None]:
    """The node is a namespace of its own here. It has a connection from this port of its address to the client's."""
    name = f"nnforged{os.getpid()}-{next(_NAMES)}"
    netns.create(name)
    with ExitStack() as stack:
        stack.callback(netns.delete, name)
        stack.enter_context(netns.inside(name))
        with Link() as link:
            for address in (outside.node, outside.client):
                addresses.add(link, link.require("lo").index, ip_interface(address))
        kind = socket.SOCK_STREAM if layer is TCP else socket.SOCK_DGRAM
        family = socket.AF_INET if outside.version == 4 else socket.AF_INET6
        far, near = (stack.enter_context(socket.socket(family, kind)) for _ in range(2))
        far.bind((outside.client, CLIENT_PORT))
        near.bind((outside.node, port))
        if layer is TCP:
            far.listen()
        connect(near, outside.client)
        yield


def connect(near: socket.socket, address: str) -> None:
    """Linux adds the route of an IPv6 address a moment after the address."""
    deadline = time.monotonic() + 5
    while True:
        try:
            near.connect((address, CLIENT_PORT))
        except OSError as error:
            if error.errno != errno.ENETUNREACH or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def test_a_hostnetwork_backends_own_connection(outside: Outside, layer: type[Packet]) -> None:
    """A call of the Service from the other end of it, forged or not, gets another port, so the connection keeps its
    addresses."""
    outside.serve(outside.node)
    with own_socket(outside, layer, TARGET):
        there = ends(outside.enters(outside.call(ask(layer))))
        assert (there[0], *there[2:]) == (outside.client, outside.node, TARGET)
        assert there[1] != CLIENT_PORT
        own = outside.ip(src=outside.node, dst=outside.client) / middle(layer, TARGET, CLIENT_PORT)
        assert ends(outside.leaves(own, ingress=0)) == ends(own)
        # Another client has nothing to do with it.
        assert ends(outside.enters(outside.call(ask(layer), client=outside.other)))[1] == CLIENT_PORT


def test_a_listener_is_no_connection(outside: Outside) -> None:
    """The backend's own one, which takes the call."""
    outside.serve(outside.node)
    family = socket.AF_INET if outside.version == 4 else socket.AF_INET6
    with own_socket(outside, TCP, TARGET + 1), socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((outside.node, TARGET))
        listener.listen()
        assert ends(outside.enters(outside.call(ask(TCP))))[1] == CLIENT_PORT


@pytest.mark.parametrize("flags", ["SA", "A", "FA"])
def test_the_nodes_connection_from_a_port_that_is_served(outside: Outside, layer: type[Packet], flags: str) -> None:
    """It is older than the Service, for example. Its answers are for the node."""
    outside.serve(outside.near)
    answer = outside.call(middle(layer, flags=flags))
    with own_socket(outside, layer, NODE_PORT):
        assert ends(outside.enters(answer)) == ends(answer)
        assert not outside.halves()


def test_only_what_may_belong_to_a_lost_flow_opens_one(outside: Outside) -> None:
    """A client never sends a SYN-ACK."""
    outside.serve(outside.near)
    for flags in ("SA", "R", "RA"):
        packet = outside.call(middle(TCP, flags=flags))
        assert ends(outside.enters(packet)) == ends(packet)
    assert not outside.halves()
    assert ends(outside.enters(outside.call(middle(TCP))))[2] == outside.near


def opened(outside: Outside) -> tuple[str, int, str, int]:
    outside.serve(outside.near)
    there = ends(outside.enters(outside.call(ask(TCP))))
    outside.leaves(outside.answer(TCP, there, flags="SA"))
    outside.enters(outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, **PROOF)))
    return there


@pytest.mark.parametrize("idle", [0, 30])
def test_a_reset_in_the_clients_name_does_not_move_a_connection(outside: Outside, idle: int) -> None:
    """The backend ignores it if its sequence number is wrong, and goes on."""
    there = opened(outside)
    outside.serve(outside.far)
    outside.enters(outside.call(middle(TCP, flags="R")))
    for key, entry in list(outside.tables["nn_nat"].items()):
        outside.tables["nn_nat"].update(key, entry._replace(last_seen=monotonic() - idle))
    assert ends(outside.enters(outside.call(ask(TCP)))) == there


def test_after_a_reset_of_the_backend_a_syn_chooses_again(outside: Outside) -> None:
    there = opened(outside)
    outside.serve(outside.far)
    outside.leaves(outside.answer(TCP, there, flags="R"))
    assert ends(outside.enters(outside.call(ask(TCP))))[2] == outside.far


def test_sources_that_are_no_client(outside: Outside, layer: type[Packet]) -> None:
    """None of them gets an answer, nor a flow."""
    outside.serve(outside.near, address=outside.vip, cluster_ip=True)
    sources = {
        4: ("0.0.0.0", "127.0.0.1", "169.254.42.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", outside.vip),
        6: ("::", "::1", "100::1", "fe80::1", "ff02::1", outside.vip),
    }[outside.version]
    for served in (True, False):
        outside.serve(*([outside.near] if served else []), address=outside.vip, cluster_ip=True)
        for source in sources:
            packet = outside.call(ask(layer), client=source, to=outside.vip)
            run = outside.run("netdev_ingress", packet, TEST_IFINDEX)
            assert (run.verdict, source) == (TC_OK, source)
            assert ends(Ether(run.packet)[outside.ip]) == ends(packet)
    assert not outside.halves()


def test_an_answer_goes_to_one_machine(outside: Outside, layer: type[Packet]) -> None:
    outside.serve()
    for source, verdict in (("02:00:00:00:00:aa", TC_REDIRECT), ("ff:ff:ff:ff:ff:ff", TC_SHOT)):
        frame = bytes(Ether(src=source, dst="00:00:00:00:00:00") / outside.call(ask(layer)))
        program = outside.datapath.loaded.programs["netdev_ingress"]
        assert run_packet(program, frame, ingress_ifindex=TEST_IFINDEX).verdict == verdict


@pytest.mark.parametrize("gone", ["nn_backend", "nn_frontend"])
def test_a_gap_while_a_service_changes_refuses_nobody(outside: Outside, layer: type[Packet], gone: str) -> None:
    """The packet is dropped, and the client sends it again."""
    outside.serve(outside.near)
    for key, _ in list(outside.tables[gone].items()):
        if not isinstance(key, abi.FrontendKey) or key.slot:
            outside.tables[gone].delete(key)
    assert outside.run("netdev_ingress", outside.call(ask(layer)), TEST_IFINDEX).verdict == TC_SHOT
