"""TCP in the middle of a connection that has no entry: two readings, and the pod's own sockets where they differ."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_interface

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nodenet import abi
from nodenet.abi import CtFlag, CtStatus, DropReason, EventType
from nodenet.link import addresses, netns, veth
from nodenet.link.handle import Link
from nodenet.model import Direction, Identity

from .conftest import POD_MAC, TC_OK, TC_REDIRECT, TC_SHOT, TEST_IFINDEX, Datapath
from .test_endpoint import CLIENT, EGRESS, INGRESS, SERVER, monotonic

pytestmark = pytest.mark.kernel

# One port for each part: the pod's own one when it serves, the other end's when that serves, and those of clients.
POD_SERVES, REMOTE_SERVES, POD_CALLS, REMOTE_CALLS = 8080, 80, 40000, 50000
# On the pod's link, and nobody has it.
SILENT = {socket.AF_INET: "10.0.9.9", socket.AF_INET6: "fd00:9::9"}
# One past the packet that is seen: what a reset of its sender must carry.
ACKNOWLEDGED = 0x1234567


class World:
    """A node's namespace, in which packets are tried, and a pod's namespace with real sockets of both ends."""

    def __init__(self, datapath: Datapath, node: str, pod: str, number: int, version: int) -> None:
        self.datapath = datapath
        self.node, self.pod_ns, self.number = node, pod, number
        self.ip = IP if version == 4 else IPv6
        self.family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.pod, self.remote = ("10.0.1.1", "10.0.2.2") if version == 4 else ("fd00:1::1", "fd00:2::2")
        self.endpoint()

    def endpoint(self, flags: int = 0, number: int = 1, netns_number: int | None = None) -> None:
        known = self.number + 1 if netns_number is None else netns_number
        entry = abi.always(abi.EndpointEntry(TEST_IFINDEX, CLIENT, number, flags, POD_MAC, known))
        self.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(self.pod)), entry)
        self.datapath.identity(self.pod, CLIENT)
        self.datapath.identity(self.remote, SERVER)

    def policy(self, *, egress: bool, ingress: bool, netns_number: int | None = None) -> None:
        """Isolated in both directions; what is allowed is the port that the opener of each reading calls."""
        self.endpoint(INGRESS | EGRESS, netns_number=netns_number)
        self.forbid(Direction.EGRESS, Direction.INGRESS)
        if egress:
            self.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, REMOTE_SERVES, rule=21)
            self.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 6, REMOTE_CALLS, rule=21)
        if ingress:
            self.datapath.allow(CLIENT, SERVER, Direction.INGRESS, 6, POD_SERVES, rule=22)
            self.datapath.allow(CLIENT, SERVER, Direction.INGRESS, 6, POD_CALLS, rule=22)

    def forbid(self, *directions: Direction) -> None:
        table = self.datapath.tables["nn_policy"]
        for key, _ in list(table.items()):
            if key.direction in directions:
                table.delete(key)

    def socket(self, address: str, port: int) -> socket.socket:
        made = netns.open_socket(self.pod_ns, self.family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        return made

    @contextmanager
    def connection(
        self, opener: str, listener: socket.socket | None = None, *, listens_on: bool = True
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A real one between the pod and the remote; both ends are in the pod's namespace."""
        with ExitStack() as stack:
            if opener == "pod":
                server, client = self.socket(self.remote, REMOTE_SERVES), self.socket(self.pod, POD_CALLS)
                target = (self.remote, REMOTE_SERVES)
            else:
                server, client = listener or self.socket(self.pod, POD_SERVES), self.socket(self.remote, REMOTE_CALLS)
                target = (self.pod, POD_SERVES)
            server.listen()
            client.connect(target)
            accepted, _ = server.accept()
            for made in (client, accepted):
                # No TIME_WAIT: the next test has the same ends.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                stack.callback(made.close)
            stack.callback(server.close)
            if opener == "pod" or not listens_on:
                server.close()
            yield client, accepted

    def packet(self, opener: str, way: Direction, flags: str = "A", payload: bytes = b"") -> Packet:
        pod, remote = (POD_SERVES, REMOTE_CALLS) if opener == "remote" else (POD_CALLS, REMOTE_SERVES)
        if way == Direction.EGRESS:
            head = self.ip(src=self.pod, dst=self.remote) / TCP(sport=pod, dport=remote, flags=flags, ack=ACKNOWLEDGED)
        else:
            head = self.ip(src=self.remote, dst=self.pod) / TCP(sport=remote, dport=pod, flags=flags, ack=ACKNOWLEDGED)
        return head / Raw(payload) if payload else head

    def verdict(self, packet: Packet, way: Direction) -> int:
        with netns.inside(self.node):
            return (self.datapath.sent if way == Direction.EGRESS else self.datapath.received)(packet)

    def entry(self) -> abi.CtEntry:
        ((_, entry),) = self.datapath.tables["nn_ct"].items()
        assert isinstance(entry, abi.CtEntry)
        return entry

    def reset_of(self, packet: Packet) -> Packet:
        """What the pod is given in its packet's place."""
        with netns.inside(self.node):
            run = self.datapath.run("endpoint_egress", packet)
        assert run.verdict == TC_REDIRECT
        return Ether(run.packet)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[str, str, int]]:
    """A node's and a pod's, joined by a veth, and the number of the second one in the first."""
    node, pod = f"nnpickn{os.getpid()}", f"nnpickp{os.getpid()}"
    try:
        netns.create(node)
        netns.create(pod)
        with Link(node) as link, netns.opened(pod) as fd:
            made = veth.create(link, "veth0", "eth0", fd)
            link.set(made.index, state="up")
        assert made.peer_netns is not None
        with Link(pod) as link:
            eth0 = link.require("eth0").index
            link.set(eth0, state="up")
            addresses.add(link, eth0, ip_interface("10.0.9.1/24"))
            addresses.add(link, eth0, ip_interface("fd00:9::1/64"))
            for text in ("10.0.1.1/32", "10.0.2.2/32", "fd00:1::1/128", "fd00:2::2/128"):
                addresses.add(link, link.require("lo").index, ip_interface(text))
        yield node, pod, made.peer_netns
    finally:
        netns.delete(node)
        netns.delete(pod)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, datapath: Datapath, namespaces: tuple[str, str, int]) -> World:
    return World(datapath, *namespaces, request.param)


CELLS = list(itertools.product((Direction.EGRESS, Direction.INGRESS), (False, True), (False, True)))


def expected(opener: str, egress: bool, ingress: bool) -> bool:
    """Whether a packet passes: both readings, and where they differ that of who opened."""
    if egress == ingress:
        return egress
    return {"pod": egress, "remote": ingress}.get(opener, False)


@pytest.mark.parametrize(("way", "egress", "ingress"), CELLS)
@pytest.mark.parametrize("opener", ["pod", "remote"])
def test_the_pods_sockets_decide_where_the_readings_differ(
    world: World, opener: str, way: Direction, egress: bool, ingress: bool
) -> None:
    world.policy(egress=egress, ingress=ingress)
    packet = world.packet(opener, way)
    with world.connection(opener):
        passes = world.verdict(packet, way) == TC_OK
        assert passes == expected(opener, egress, ingress)
        if passes:
            entry = world.entry()
            direction = Direction.EGRESS if opener == "pod" else Direction.INGRESS
            assert (entry.direction, entry.rule_id) == (direction, 21 if opener == "pod" else 22)
            # The other side's packets are this flow's too, and the entry keeps an idle one as an opened one's would.
            other = Direction.INGRESS if way == Direction.EGRESS else Direction.EGRESS
            assert world.verdict(world.packet(opener, other), other) == TC_OK
            assert world.entry().flags == CtFlag.SEEN_REPLY


@pytest.mark.parametrize(("way", "egress", "ingress"), CELLS)
@pytest.mark.parametrize("netns_number", [None, 0, 0xFFFF], ids=["no socket", "unknown namespace", "gone namespace"])
def test_without_a_socket_both_readings_must_allow(
    world: World, way: Direction, egress: bool, ingress: bool, netns_number: int | None
) -> None:
    world.policy(egress=egress, ingress=ingress, netns_number=netns_number)
    for opener in ("pod", "remote"):
        passes = world.verdict(world.packet(opener, way), way) == TC_OK
        assert passes == (egress and ingress)
    entries = [entry.flags for _, entry in world.datapath.tables["nn_ct"].items()]
    assert entries == ([CtFlag.UNSURE] * 2 if egress and ingress else [])


@pytest.mark.parametrize(("way", "egress", "ingress"), CELLS)
def test_a_server_that_listens_no_more_was_opened_by_the_other_side(
    world: World, way: Direction, egress: bool, ingress: bool
) -> None:
    world.policy(egress=egress, ingress=ingress)
    with world.connection("remote", listens_on=False):
        assert (world.verdict(world.packet("remote", way), way) == TC_OK) == ingress


@pytest.mark.parametrize(("way", "egress", "ingress"), CELLS)
def test_a_client_that_listens_on_its_port_has_opened_its_connection_all_the_same(
    world: World, way: Direction, egress: bool, ingress: bool
) -> None:
    """Or it could have a connection that egress policy cut judged by its ingress rules."""
    world.policy(egress=egress, ingress=ingress)
    with world.connection("pod"), world.socket(world.pod, POD_CALLS) as listener:
        listener.listen()
        assert (world.verdict(world.packet("pod", way), way) == TC_OK) == egress


def test_no_stream_socket_can_pass_for_an_accepted_one(world: World) -> None:
    """What nn_opener_by_kernel reads is out of its holder's reach."""
    with world.connection("pod") as ends:
        for made in ends:
            for level, option, value in (
                (socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", 1)),
                (socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", 0)),
                (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, struct.pack("i", 1)),
                (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, struct.pack("i", 0)),
            ):
                with pytest.raises(OSError, match=r"Invalid argument|not available|not supported"):
                    made.setsockopt(level, option, value)


def test_a_listener_without_the_connection_vouches_for_nothing(world: World) -> None:
    """Or a pod could send by hand from a port on which it listens, past its egress policy."""
    world.policy(egress=False, ingress=True)
    with world.socket(world.pod, POD_SERVES) as listener:
        listener.listen()
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) != TC_OK


def test_a_dual_stack_listener_and_one_of_several_that_share_a_port(world: World) -> None:
    world.policy(egress=False, ingress=True)
    listener = netns.open_socket(world.pod_ns, socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("::", POD_SERVES))
    with world.connection("remote", listener):
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) == TC_OK


def test_a_flow_that_policy_cut_does_not_come_back_when_its_entry_is_gone(world: World) -> None:
    """The server's next segment is none of its own."""
    world.endpoint(INGRESS)
    key = world.datapath.allow(CLIENT, SERVER, Direction.INGRESS, 6, POD_SERVES)
    with world.connection("remote"):
        assert world.verdict(world.packet("remote", Direction.INGRESS, "S"), Direction.INGRESS) == TC_OK
        assert world.verdict(world.packet("remote", Direction.EGRESS, "SA"), Direction.EGRESS) == TC_OK
        world.datapath.tables["nn_policy"].delete(key)
        world.datapath.revision(2)
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) == TC_SHOT
        forget(world.datapath)
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) == TC_SHOT
        assert -world.datapath.events()[-1].reason == DropReason.POLICY_DENIED
        assert world.verdict(world.packet("remote", Direction.EGRESS, "FA"), Direction.EGRESS) == TC_SHOT


def forget(datapath: Datapath) -> None:
    """As an eviction, or a replaced map."""
    for key, _ in list(datapath.tables["nn_ct"].items()):
        datapath.tables["nn_ct"].delete(key)


@pytest.mark.parametrize("lost", ["evicted", "expired", "renumbered"])
@pytest.mark.parametrize("opener", ["pod", "remote"])
@pytest.mark.parametrize("first", [Direction.EGRESS, Direction.INGRESS])
def test_an_allowed_idle_connection_lives_whoever_speaks_first(
    world: World, opener: str, first: Direction, lost: str
) -> None:
    world.policy(egress=opener == "pod", ingress=opener == "remote")
    opening, answering = Direction.EGRESS, Direction.INGRESS
    if opener == "remote":
        opening, answering = answering, opening
    with world.connection(opener):
        assert world.verdict(world.packet(opener, opening, "S"), opening) == TC_OK
        assert world.verdict(world.packet(opener, answering, "SA"), answering) == TC_OK
        if lost == "evicted":
            forget(world.datapath)
        elif lost == "expired":
            ((key, entry),) = world.datapath.tables["nn_ct"].items()
            world.datapath.tables["nn_ct"].update(key, entry._replace(last_seen=(monotonic() - 9000) & 0xFFFFFFFF))
        else:
            world.endpoint(INGRESS | EGRESS, number=77)
        assert world.verdict(world.packet(opener, first, "PA", b"news"), first) == TC_OK
        assert world.entry().endpoint_id == (77 if lost == "renumbered" else 1)
        assert world.entry().direction == opening


def test_a_handshake_whose_entry_is_gone_goes_on(world: World) -> None:
    """The pod's half-open sockets know who opened: SYN_SENT, and the request of a listener."""
    world.policy(egress=True, ingress=False)
    world.remote, reachable = SILENT[world.family], world.remote
    world.datapath.identity(world.remote, SERVER)
    with world.socket(world.pod, POD_CALLS) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect((world.remote, REMOTE_SERVES))
        assert world.verdict(world.packet("pod", Direction.INGRESS, "SA"), Direction.INGRESS) == TC_OK
    world.datapath.reset()
    world.remote = reachable
    world.policy(egress=False, ingress=True)
    with world.socket(world.pod, POD_SERVES) as server, world.socket(world.remote, REMOTE_CALLS) as client:
        # The request stays one until data comes.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        server.listen()
        client.connect((world.pod, POD_SERVES))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert world.verdict(world.packet("remote", Direction.EGRESS, "SA"), Direction.EGRESS) == TC_OK


def test_a_syn_ack_opens_nothing(world: World) -> None:
    """Where only a rule lets a pod open, a SYN-ACK is no opening: it needs a connection that the other side opened."""
    world.policy(egress=True, ingress=False)
    assert world.verdict(world.packet("pod", Direction.EGRESS, "SA"), Direction.EGRESS) == TC_SHOT
    assert world.verdict(world.packet("pod", Direction.INGRESS, "SA"), Direction.INGRESS) == TC_SHOT
    world.endpoint(0)
    assert world.verdict(world.packet("pod", Direction.INGRESS, "SA"), Direction.INGRESS) == TC_OK


@pytest.mark.parametrize("flags", ["FA", "RA", "R"])
def test_the_end_of_a_connection_is_picked_up_as_its_end(world: World, flags: str) -> None:
    world.policy(egress=False, ingress=True)
    with world.connection("remote"):
        assert world.verdict(world.packet("remote", Direction.EGRESS, flags), Direction.EGRESS) == TC_OK
    ending = CtFlag.FIN_REPLY if flags == "FA" else CtFlag.RST
    assert world.entry().flags == CtFlag.SEEN_REPLY | ending


def test_a_picked_up_flow_is_reported_as_one_that_goes_on(world: World) -> None:
    world.policy(egress=False, ingress=True)
    with world.connection("remote"):
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) == TC_OK
    (event,) = world.datapath.events()
    assert (event.type, event.ct_status, event.is_reply) == (EventType.POLICY_VERDICT, CtStatus.REPLY, 1)
    assert (event.rule_id, event.direction) == (22, Direction.EGRESS)


def test_an_unsure_flow_is_judged_by_both_readings_until_the_sockets_say(world: World) -> None:
    world.policy(egress=True, ingress=True, netns_number=0)
    out = world.packet("remote", Direction.EGRESS)
    assert world.verdict(out, Direction.EGRESS) == TC_OK
    assert world.entry().flags == CtFlag.UNSURE
    world.forbid(Direction.EGRESS)
    world.datapath.revision(2)
    assert world.verdict(out, Direction.EGRESS) != TC_OK  # no socket
    world.endpoint(INGRESS | EGRESS)
    with world.connection("remote"):
        assert world.verdict(out, Direction.EGRESS) == TC_OK
    entry = world.entry()
    assert (entry.direction, entry.flags & CtFlag.UNSURE, entry.revision) == (Direction.INGRESS, 0, 2)


def test_the_sender_is_reset_where_nothing_decides(world: World) -> None:
    world.policy(egress=False, ingress=True)
    sent = world.packet("remote", Direction.EGRESS, "PA", b"news" * 50)
    frame = world.reset_of(sent)
    assert (frame.dst, frame.src) == (POD_MAC, "02:00:00:00:00:bb")
    ip, reset = frame[world.ip], frame[TCP]
    assert (ip.src, ip.dst, reset.sport, reset.dport) == (world.remote, world.pod, REMOTE_CALLS, POD_SERVES)
    assert (reset.flags, reset.seq, bytes(reset.payload)) == ("R", ACKNOWLEDGED, b"")
    # Scapy's own sums over the same fields.
    again = world.ip(bytes(ip))
    del again[TCP].chksum
    if world.ip is IP:
        del again.chksum
    assert bytes(ip) == bytes(world.ip(bytes(again)))
    event = world.datapath.events()[-1]
    assert (event.type, -event.reason, event.direction) == (EventType.DROP, DropReason.POLICY_DENIED, Direction.EGRESS)


def test_nothing_but_a_packet_of_the_pods_own_connection_is_reset(world: World) -> None:
    """Not what comes from the network, where anybody may send; not resets, fragments, or what acknowledges nothing."""
    world.policy(egress=False, ingress=True)
    for flags in ("R", "RA", "SA", "F", ""):
        assert world.verdict(world.packet("remote", Direction.EGRESS, flags), Direction.EGRESS) == TC_SHOT
    world.policy(egress=True, ingress=False)
    assert world.verdict(world.packet("pod", Direction.INGRESS), Direction.INGRESS) == TC_SHOT


def test_the_sender_on_the_same_node_is_reset_for_the_receivers_side(world: World) -> None:
    peer = abi.always(abi.EndpointEntry(4242, SERVER, 2, INGRESS, "02:00:00:00:00:02", 0))
    world.endpoint(0)
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(world.remote)), peer)
    frame = world.reset_of(world.packet("pod", Direction.EGRESS))
    assert (frame.dst, frame[TCP].flags, frame[TCP].dport) == (POD_MAC, "R", POD_CALLS)


def test_both_sides_on_one_node_decide_for_themselves(world: World) -> None:
    """The server speaks first after both entries are gone: its own half is a reply, and so is the client's half."""
    world.policy(egress=False, ingress=True)
    peer = abi.always(abi.EndpointEntry(4242, SERVER, 2, INGRESS | EGRESS, "02:00:00:00:00:02", world.number + 1))
    world.datapath.tables["nn_endpoint"].update(abi.AddressKey(ip_address(world.remote)), peer)
    world.datapath.allow(SERVER, CLIENT, Direction.EGRESS, 6, POD_SERVES)
    news = world.packet("remote", Direction.EGRESS, "PA", b"news")
    with world.connection("remote"):
        with netns.inside(world.node):
            run = world.datapath.run("endpoint_egress", news)
        assert (run.verdict, Ether(run.packet).dst) == (TC_REDIRECT, "02:00:00:00:00:02")
    halves = {str(key.pod): entry.direction for key, entry in world.datapath.tables["nn_ct"].items()}
    assert halves == {world.pod: Direction.INGRESS, world.remote: Direction.EGRESS}


def test_an_answer_to_the_nodes_address_opens_nothing_to_those_it_masquerades(world: World) -> None:
    """Who comes in with that address from elsewhere is the world: the pod's own packet must not let it in again."""
    world.policy(egress=False, ingress=False)
    world.datapath.identity(world.remote, Identity.HOST)
    with world.connection("remote"):
        assert world.verdict(world.packet("remote", Direction.EGRESS), Direction.EGRESS) == TC_OK
        assert list(world.datapath.tables["nn_ct"].items()) == []
        assert world.verdict(world.packet("remote", Direction.INGRESS), Direction.INGRESS) == TC_OK  # from the node
    assert world.entry().direction == Direction.INGRESS
    forget(world.datapath)
    with world.connection("pod"):
        assert world.verdict(world.packet("pod", Direction.EGRESS), Direction.EGRESS) == TC_OK
    assert world.entry().direction == Direction.EGRESS


def test_a_datagram_is_always_an_opening(world: World) -> None:
    world.endpoint(INGRESS | EGRESS)
    world.datapath.allow(CLIENT, SERVER, Direction.INGRESS, 17, 53)
    answer = world.ip(src=world.pod, dst=world.remote) / UDP(sport=53, dport=5000)
    assert world.verdict(answer, Direction.EGRESS) == TC_SHOT
    world.datapath.allow(CLIENT, SERVER, Direction.EGRESS, 17, 5000)
    assert world.verdict(answer, Direction.EGRESS) == TC_OK
    assert world.entry().direction == Direction.EGRESS


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_what_is_denied_keeps_its_entry_for_as_long_as_either_side_sends(world: World, protocol: str) -> None:
    layer = {"udp": UDP, "tcp": TCP}[protocol]
    world.endpoint(INGRESS)
    key = world.datapath.allow(CLIENT, SERVER, Direction.INGRESS, 17 if protocol == "udp" else 6, 53)
    call = world.ip(src=world.remote, dst=world.pod) / layer(sport=5000, dport=53)
    answer = world.ip(src=world.pod, dst=world.remote) / layer(sport=53, dport=5000)
    if protocol == "tcp":
        answer[TCP].flags = "SA"
    assert world.verdict(call, Direction.INGRESS) == TC_OK
    assert world.verdict(answer, Direction.EGRESS) == TC_OK
    world.datapath.tables["nn_policy"].delete(key)
    world.datapath.revision(2)
    if protocol == "tcp":
        answer[TCP].flags = "A"
    for _ in range(3):  # each near the end of the entry's life
        ((place, entry),) = world.datapath.tables["nn_ct"].items()
        world.datapath.tables["nn_ct"].update(place, entry._replace(last_seen=monotonic() - 170))
        assert world.verdict(answer, Direction.EGRESS) == TC_SHOT
        assert monotonic() - world.entry().last_seen <= 1
