"""Who is believed about a flow: whoever may have forwarded its packets, and the pod that they were sent to."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import DropReason
from nodenet.model import Direction, Identity

from .conftest import OTHER_IFINDEX, TC_OK, TC_REDIRECT, TC_SHOT, Datapath

pytestmark = pytest.mark.kernel

VICTIM, SERVER, THIRD = 1000, 2000, 3000
INGRESS, EGRESS = abi.EndpointFlag.ISOLATED_INGRESS, abi.EndpointFlag.ISOLATED_EGRESS


class Scene:
    """A pod that nobody may call, its flow with a server on another node, a third pod, and a router."""

    def __init__(self, datapath: Datapath, version: int) -> None:
        self.datapath, self.version = datapath, version
        self.layer = IP if version == 4 else IPv6
        self.victim, self.server, self.third, self.router = (
            ("10.0.1.1", "10.0.2.2", "10.0.3.3", "192.0.2.1")
            if version == 4
            else ("fd00:1::1", "fd00:2::2", "fd00:3::3", "2001:db8::1")
        )
        datapath.endpoint(self.victim, VICTIM, number=1, flags=INGRESS)
        datapath.identity(self.server, SERVER)
        datapath.identity(self.third, THIRD)

    def asked(self, transport: Packet) -> Packet:
        return self.layer(src=self.victim, dst=self.server) / transport

    def errors(self, sender: str, quoted: Packet) -> list[Packet]:
        """Of every kind that a kernel acts on."""
        head = self.layer(src=sender, dst=self.victim)
        quote = Raw(bytes(quoted))
        if self.version == 4:
            return [
                head / ICMP(type=kind, code=code) / quote for kind, code in ((3, 3), (3, 4), (3, 13), (11, 0), (12, 0))
            ]
        kinds = (ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded())
        return [head / kind / quote for kind in kinds]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def scene(request: pytest.FixtureRequest, datapath: Datapath) -> Scene:
    return Scene(datapath, request.param)


FLOWS = pytest.mark.parametrize(
    "transport", [UDP(sport=4444, dport=5353), TCP(sport=4444, dport=80, flags="S")], ids=["udp", "tcp"]
)


@FLOWS
def test_a_third_pod_is_not_believed(scene: Scene, transport: Packet) -> None:
    asked = scene.asked(transport)
    assert scene.datapath.sent(asked) == TC_OK
    scene.datapath.events()
    for error in scene.errors(scene.third, asked):
        assert scene.datapath.received(error) == TC_SHOT, error.summary()
        (event,) = scene.datapath.events()
        assert -event.reason == DropReason.INVALID_PACKET_DROPPED


@FLOWS
def test_the_flows_own_peer_is_believed(scene: Scene, transport: Packet) -> None:
    asked = scene.asked(transport)
    assert scene.datapath.sent(asked) == TC_OK
    for error in scene.errors(scene.server, asked):
        assert scene.datapath.received(error) == TC_OK, error.summary()


@pytest.mark.parametrize("identity", [None, Identity.HOST, Identity.REMOTE_NODE, 7], ids=str)
def test_routers_and_nodes_are_believed(scene: Scene, identity: int | None) -> None:
    asked = scene.asked(UDP(sport=4444, dport=5353))
    assert scene.datapath.sent(asked) == TC_OK
    if identity is not None:
        scene.datapath.identity(scene.router, identity)
    for error in scene.errors(scene.router, asked):
        assert scene.datapath.received(error) == TC_OK, error.summary()


@pytest.mark.parametrize("identity", [0, THIRD], ids=["labels not known yet", "known"])
def test_a_pod_of_the_same_node_is_not_believed_either(scene: Scene, identity: int) -> None:
    """Over the bridge, where the receiving half alone judges, and straight into the other pod's namespace."""
    asked = scene.asked(UDP(sport=4444, dport=5353))
    assert scene.datapath.sent(asked) == TC_OK
    scene.datapath.endpoint(scene.third, identity, number=3, ifindex=OTHER_IFINDEX)
    for error in scene.errors(scene.third, asked):
        assert scene.datapath.received(error) == TC_SHOT, error.summary()


def test_straight_delivery_believes_the_peer_and_nobody_else(scene: Scene) -> None:
    """The sending pod is on this interface, the receiving one is the other; its flow entry was made when it asked."""
    data = scene.datapath
    for quoted, wanted in ((scene.server, TC_SHOT), (scene.victim, TC_REDIRECT)):
        # `mate` has a flow with `quoted`; the victim's interface sends the error.
        mate = scene.third
        data.reset()
        data.endpoint(mate, THIRD, number=1, flags=INGRESS)
        data.identity(quoted, SERVER)
        asked = scene.layer(src=mate, dst=quoted) / UDP(sport=4444, dport=5353)
        assert data.sent(asked) == TC_OK
        ((key, entry),) = data.tables["nn_ct"].items()
        data.endpoint(mate, THIRD, number=3, ifindex=OTHER_IFINDEX, flags=INGRESS)
        data.tables["nn_ct"].update(key, entry._replace(endpoint_id=3))
        data.endpoint(scene.victim, VICTIM, number=1)
        for error in scene.errors(scene.victim, asked):
            error[scene.layer].dst = mate
            assert data.sent(error) == wanted, error.summary()


def test_a_pod_reports_only_what_was_sent_to_itself(scene: Scene) -> None:
    """The sending side of the same rule: its policy lets nothing else out."""
    scene.datapath.endpoint(scene.victim, VICTIM, number=1, flags=EGRESS)
    to_pod = scene.layer(src=scene.server, dst=scene.victim) / UDP(sport=53, dport=4444)
    assert scene.datapath.received(to_pod) == TC_OK
    for quoted, wanted in (
        (to_pod, TC_OK),
        (scene.layer(src=scene.server, dst=scene.third) / UDP(sport=53, dport=4444), TC_SHOT),
    ):
        for error in scene.errors(scene.victim, quoted):
            error[scene.layer].dst = scene.server
            assert scene.datapath.sent(error) == wanted, error.summary()


@pytest.mark.parametrize("flags", [0, INGRESS], ids=["not isolated", "the third pod may call it"])
def test_no_policy_makes_a_third_pod_believed(scene: Scene, flags: int) -> None:
    """Who may call the pod is not asked about the pod's flows with others."""
    scene.datapath.endpoint(scene.victim, VICTIM, number=1, flags=flags)
    scene.datapath.allow(VICTIM, THIRD, Direction.INGRESS)
    asked = scene.asked(UDP(sport=4444, dport=5353))
    assert scene.datapath.sent(asked) == TC_OK
    assert scene.datapath.received(scene.layer(src=scene.third, dst=scene.victim) / UDP(sport=1, dport=2)) == TC_OK
    scene.datapath.events()
    for error in scene.errors(scene.third, asked):
        assert scene.datapath.received(error) == TC_SHOT, error.summary()
        (event,) = scene.datapath.events()
        assert -event.reason == DropReason.INVALID_PACKET_DROPPED


def test_a_pod_may_report_about_what_was_sent_to_itself_without_an_entry(scene: Scene) -> None:
    """The entry was evicted: the error is a plain packet, and policy decides."""
    scene.datapath.endpoint(scene.victim, VICTIM, number=1)
    for error in scene.errors(scene.server, scene.asked(UDP(sport=4444, dport=5353))):
        assert scene.datapath.received(error) == TC_OK, error.summary()
