"""Which addresses the service stage serves: any, whatever identity it has; and what happens to their other ports."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest

from nodenet import abi, model
from nodenet.abi import AddressFlag, DropReason

from .conftest import TC_OK, Datapath
from .test_service_packets import CLIENT, PORT, PROTOCOLS, SPORT, TARGET, World, ends

pytestmark = pytest.mark.kernel

FAR_SERVER = 3000


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath) -> Iterator[World]:
    yield World(datapath, request.param)
    datapath.reset()


def flags(world: World, value: AddressFlag | int) -> None:
    """Of the Service's address."""
    world.datapath.tables["nn_service_addr"].update(abi.AddressKey(ip_address(world.service)), abi.U32(int(value)))


@pytest.mark.parametrize("identity", [model.Identity.HOST, model.Identity.REMOTE_NODE, CLIENT, FAR_SERVER, 0])
@pytest.mark.parametrize("layer", PROTOCOLS.values())
def test_a_service_is_found_whatever_the_identity_of_its_address(world: World, identity: int, layer: type) -> None:
    world.datapath.identity(world.service, identity)
    called = world.out(world.call(layer(sport=SPORT, dport=PORT)))
    assert ends(called) == (world.pod, SPORT, world.far, TARGET)
    back = layer(sport=TARGET, dport=SPORT, **({"flags": "SA"} if layer is TCP else {}))
    assert ends(world.into(world.answer(back))) == (world.service, PORT, world.pod, SPORT)


def test_other_ports_of_an_address_that_is_not_exclusive_are_not_touched(world: World) -> None:
    """A node's own address, as its kubelet and its SSH server use it."""
    world.datapath.identity(world.service, model.Identity.HOST)
    flags(world, 0)
    assert ends(world.out(world.call(TCP(sport=SPORT, dport=PORT)))) == (world.pod, SPORT, world.far, TARGET)
    for layer in (TCP(sport=SPORT, dport=22), UDP(sport=SPORT, dport=22), TCP(sport=10250, dport=40000, flags="SA")):
        assert ends(world.out(world.call(layer))) == (world.pod, layer.sport, world.service, layer.dport)
    echo = ICMP() if world.ip.__name__ == "IP" else ICMPv6EchoRequest()
    assert world.out(world.call(echo)).dst == world.service
    flags(world, AddressFlag.REFUSE_UNSERVED)
    for layer in (TCP(sport=SPORT + 1, dport=22), UDP(sport=SPORT + 1, dport=22), echo):
        world.datapath.tables["nn_ct"].delete(ct_key(world, layer))
        world.refused(world.call(layer), DropReason.IS_A_CLUSTERIP, answered=True)


def ct_key(world: World, layer: object) -> abi.CtKey:
    ports = (layer.sport, layer.dport) if isinstance(layer, TCP | UDP) else (0, 0)
    protocol = {TCP: 6, UDP: 17, ICMP: 1}.get(type(layer), 58)
    return abi.CtKey(ip_address(world.pod), ip_address(world.service), *ports, protocol)


def test_replies_to_an_address_with_frontends_stay_direct(world: World) -> None:
    """A connection that the node opened to the pod: its packets go back as they are, even from a served port."""
    world.datapath.identity(world.service, model.Identity.HOST)
    flags(world, 0)
    assert world.datapath.received(world.ip(src=world.service, dst=world.pod) / TCP(sport=PORT, dport=8080)) == TC_OK
    back = world.out(world.call(TCP(sport=8080, dport=PORT, flags="SA")))
    assert ends(back) == (world.pod, 8080, world.service, PORT)


def test_a_flow_that_is_older_than_the_service_stays_direct(world: World) -> None:
    frontend = abi.FrontendKey(ip_address(world.service), PORT, 6, 0)
    table = world.datapath.tables["nn_frontend"]
    entry = table.get(frontend)
    table.delete(frontend)
    flags(world, 0)
    assert world.out(world.call(TCP(sport=SPORT, dport=PORT))).dst == world.service
    table.update(frontend, entry)
    assert world.out(world.call(TCP(sport=SPORT, dport=PORT, flags="A"))).dst == world.service
    assert world.out(world.call(TCP(sport=SPORT + 1, dport=PORT))).dst == world.far


@pytest.mark.parametrize("answered", [False, True])
def test_datagrams_from_one_port_reach_a_service_that_comes_later(world: World, answered: bool) -> None:
    """Unless they have answers already: without one, they were lost, and each of them would keep their entry fresh."""
    address = abi.AddressKey(ip_address(world.service))
    tables = world.datapath.tables
    frontends = dict(tables["nn_frontend"].items())
    for key in frontends:
        tables["nn_frontend"].delete(key)
    tables["nn_service_addr"].delete(address)
    for _ in range(2):
        assert world.out(world.call(UDP(sport=SPORT, dport=PORT))).dst == world.service
    if answered:
        world.into(world.answer(UDP(sport=PORT, dport=SPORT), world.service))
    flags(world, AddressFlag.REFUSE_UNSERVED)
    for key, entry in frontends.items():
        tables["nn_frontend"].update(key, entry)
    for _ in range(2):
        target = world.out(world.call(UDP(sport=SPORT, dport=PORT))).dst
        assert target == (world.service if answered else world.far)
