"""The source translation of flows from outside is complete, or the client's packets do not leave the node."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import TCP

from nodenet import abi
from nodenet.abi import NatHalf

from .conftest import TC_SHOT, Datapath
from .outside import CLIENT_PORT, NODE_PORT, Outside, ask, serving
from .test_service_packets import ends

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def served(bpffs: Path, bpf_cache: Path) -> Iterator[Datapath]:
    yield from serving(bpffs, bpf_cache, "source")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def outside(request: pytest.FixtureRequest, served: Datapath) -> Outside:
    made = Outside(served, request.param)
    made.serve(made.far)
    made.leaves(made.enters(made.call(ask(TCP))))
    assert set(made.halves()) == set(NatHalf)
    return made


def lose(outside: Outside, *halves: NatHalf) -> None:
    for key, _ in list(outside.tables["nn_nat"].items()):
        if key.reply in halves:
            outside.tables["nn_nat"].delete(key)


def test_a_changed_address_of_the_node_leaves_nothing_of_the_old_one(outside: Outside) -> None:
    lose(outside, NatHalf.CLIENT, NatHalf.REPLY)
    outside.tables["nn_source_addr"].update(abi.U32(outside.version), abi.AddressKey(ip_address(outside.router)))
    there = ends(outside.leaves(outside.enters(outside.call(ask(TCP)))))
    assert there[0] == outside.router
    found = outside.halves()
    assert set(found) == set(NatHalf)
    back = ends(outside.leaves(outside.enters(outside.answer(TCP, there, flags="SA"))))
    assert back == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)


@pytest.mark.parametrize("lost", [NatHalf.SOURCE_REPLY, NatHalf.SOURCE_CLIENT])
def test_a_flow_that_opens_again_is_complete(outside: Outside, lost: NatHalf) -> None:
    lose(outside, NatHalf.CLIENT, NatHalf.REPLY, lost)
    there = ends(outside.leaves(outside.enters(outside.call(ask(TCP)))))
    assert there[0] == outside.node
    assert set(outside.halves()) >= {NatHalf.CLIENT, NatHalf.REPLY, NatHalf.SOURCE_CLIENT, NatHalf.SOURCE_REPLY}
    back = ends(outside.leaves(outside.enters(outside.answer(TCP, there, flags="SA"))))
    assert back == (outside.node, NODE_PORT, outside.client, CLIENT_PORT)


def test_no_packet_leaves_with_the_clients_address(outside: Outside) -> None:
    """Its source translation was lost: the packet is dropped, and the next one opens the flow again."""
    lose(outside, NatHalf.SOURCE_CLIENT, NatHalf.SOURCE_REPLY)
    later = outside.call(TCP(sport=CLIENT_PORT, dport=NODE_PORT, flags="PA"))
    outside.datapath.events()
    outside.leaves(outside.enters(later), verdict=TC_SHOT)
    assert [-event.reason for event in outside.datapath.events()] == [abi.DropReason.NO_MAPPING_FOR_NAT_MASQUERADE]
    assert not outside.halves()
    assert ends(outside.leaves(outside.enters(later)))[0] == outside.node
    assert set(outside.halves()) == set(NatHalf)
