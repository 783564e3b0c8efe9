"""loadBalancerSourceRanges: who may open flows to a frontend, packet by packet and at the socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from nodenet import abi
from nodenet.abi import DropReason, EventType, FrontendFlag
from nodenet.bpf import loader
from nodenet.link.handle import Link
from nodenet.link.netns import path_of
from tests.sockclient import SocketProcess

from .conftest import TC_SHOT, Datapath
from .sockworld import ONE, SERVICES
from .sockworld import PORT as SOCK_PORT
from .sockworld import World as SockWorld
from .test_service_packets import PORT, PROTOCOLS, SERVICE_ID, SPORT, TARGET, World, ends

pytestmark = pytest.mark.kernel

RANGES = FrontendFlag.SOURCE_RANGES
DENIED = DropReason.DENIED_BY_LB_SRC_RANGE_CHECK
IN = {4: ["10.0.1.0/24"], 6: ["fd00:1::/64"]}
OUT = {4: ["10.0.2.0/24", "192.0.2.0/24"], 6: ["fd00:2::/64"]}


def restrict(datapath: Datapath, number: int, networks: list[str], flags: int = RANGES) -> None:
    """The ranges of a Service, and the flags of its frontends."""
    ranges, frontends = datapath.tables["nn_source_range"], datapath.tables["nn_frontend"]
    for key, _ in list(ranges.items()):
        if key.service_id == number:
            ranges.delete(key)
    for network in networks:
        ranges.update(abi.SourceRangeKey.of(number, ip_network(network)), abi.U32(1))
    for key, entry in list(frontends.items()):
        if not key.slot and entry.service_id == number:
            frontends.update(key, entry._replace(flags=int(flags)))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def packets(request: pytest.FixtureRequest, datapath: Datapath) -> Iterator[tuple[World, int]]:
    yield World(datapath, request.param), request.param
    datapath.reset()


@pytest.mark.parametrize("layer", PROTOCOLS.values())
def test_a_packet_from_a_range_goes_to_the_backend(packets: tuple[World, int], layer: type[Packet]) -> None:
    world, version = packets
    host = ip_network(world.pod)
    for networks in (IN[version], [str(host)], [*OUT[version], *IN[version]], [str(host.supernet(1))]):
        restrict(world.datapath, SERVICE_ID, networks)
        assert ends(world.out(world.call(layer(sport=SPORT, dport=PORT)))) == (world.pod, SPORT, world.far, TARGET)


@pytest.mark.parametrize("layer", PROTOCOLS.values())
def test_a_packet_from_no_range_is_dropped(packets: tuple[World, int], layer: type[Packet]) -> None:
    world, version = packets
    neighbour = ip_address(int(ip_address(world.pod)) ^ 1)
    for number, networks in enumerate((OUT[version], [], [str(ip_network(str(neighbour)))])):
        restrict(world.datapath, SERVICE_ID, networks)
        # No reset: kube-proxy drops it.
        event = world.refused(world.call(layer(sport=SPORT + number, dport=PORT)), DENIED)
        assert (event.service_id, str(event.saddr)) == (SERVICE_ID, world.pod)
    # The ranges of another Service do not count.
    restrict(world.datapath, SERVICE_ID + 1, IN[version])
    world.refused(world.call(layer(sport=SPORT + 9, dport=PORT)), DENIED)


def test_without_the_flag_nothing_is_checked(packets: tuple[World, int]) -> None:
    world, version = packets
    restrict(world.datapath, SERVICE_ID, OUT[version], 0)
    assert world.out(world.call(TCP(sport=SPORT, dport=PORT))).dst == world.far


def test_a_source_that_may_not_use_it_does_not_learn_that_it_has_no_backend(packets: tuple[World, int]) -> None:
    """A connection to a Service without backends is answered with a reset."""
    world, version = packets
    world.serve(world.service, SERVICE_ID)
    restrict(world.datapath, SERVICE_ID, OUT[version])
    world.refused(world.call(TCP(sport=SPORT, dport=PORT)), DENIED)


@pytest.mark.parametrize("layer", PROTOCOLS.values())
def test_a_flow_that_exists_goes_on(packets: tuple[World, int], layer: type[Packet]) -> None:
    """As under kube-proxy: only new flows are checked."""
    world, version = packets
    world.out(world.call(layer(sport=SPORT, dport=PORT)))
    restrict(world.datapath, SERVICE_ID, OUT[version])
    more = layer(sport=SPORT, dport=PORT, **({"flags": "A"} if layer is TCP else {}))
    assert world.out(world.call(more)).dst == world.far
    assert world.datapath.run("endpoint_egress", world.call(UDP(sport=1, dport=PORT))).verdict == TC_SHOT


class Caller:
    """A process in a namespace that is a pod's, the node's or another one, and UDP Service ONE with one server."""

    def __init__(self, datapath: Datapath, process: SocketProcess, version: int, cookie: int) -> None:
        self.datapath, self.version, self.cookie = datapath, version, cookie
        self.world = SockWorld(datapath, process, version)
        self.world.server(9001)
        self.world.serve(ONE, 9001)
        self.address = SERVICES[version][ONE]

    def is_pod(self, v4: str, v6: str) -> None:
        entry = abi.ClientEntry(ip_address(v4), ip_address(v6))
        self.datapath.tables["nn_client"].update(abi.ClientKey(self.cookie), entry)

    def call(self, name: str, how: str) -> str:
        """`server`: the server has the datagram. `itself`: the call keeps the Service's address. `refused`: EPERM."""
        do = self.world.process.do
        self.world.client(name)
        try:
            if how == "connect":
                do("connect", name, self.address, SOCK_PORT)
                do("send", name, "ask")
            else:
                self.world.ask(name, ONE)
        except PermissionError:
            return "refused"
        except OSError as error:
            # The namespace has no route to the Service.
            if error.errno != errno.ENETUNREACH:
                raise
            return "itself"
        assert do("receive", "server9001")[0] == "ask"
        return "server"


def cookie_of(netns: str) -> int:
    with Link(str(path_of(netns))) as link:
        return link.netns_cookie()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(params=["node", "pod", "unknown"])
def caller(
    request: pytest.FixtureRequest, bpffs: Path, bpf_cache: Path, cgroup: Path, netns: str, version: int
) -> Iterator[Caller]:
    """Named by its namespace. `unknown`: a kernel that does not tell the namespace of the node."""
    own = cookie_of(netns)
    config = loader.DatapathConfig(netns_cookie={"node": own, "pod": own + 1, "unknown": 0}[request.param])
    datapath = Datapath(bpffs / "ranges", bpf_cache, config)
    try:
        loader.attach_cgroup(datapath.loaded, cgroup, datapath.pins)
        with SocketProcess.inside(netns, cgroup) as process:
            yield Caller(datapath, process, version, own)
    finally:
        for link in datapath.pins.links.iterdir():
            link.unlink()
        datapath.close()


HOW = pytest.mark.parametrize("how", ["connect", "sendto"])


@HOW
@pytest.mark.parametrize("caller", ["pod"], indirect=True)
def test_a_pods_socket_has_the_pods_address(caller: Caller, how: str) -> None:
    """A call that is not allowed keeps the Service's address: the pod's interface drops and reports the packet."""
    caller.is_pod("10.0.1.1", "fd00:1::1")
    restrict(caller.datapath, ONE, IN[caller.version])
    assert caller.call("in", how) == "server"
    restrict(caller.datapath, ONE, OUT[caller.version], RANGES | FrontendFlag.ALLOWS_NODE)
    caller.datapath.events()
    assert caller.call("out", how) == "itself"
    assert caller.datapath.events() == []
    assert not list(caller.datapath.tables["nn_affinity"].items())
    # A socket that has a backend keeps it.
    caller.world.process.do("send" if how == "connect" else "sendto", "in", "ask", *caller_at(caller, how))
    assert caller.world.process.do("receive", "server9001")[0] == "ask"


def caller_at(caller: Caller, how: str) -> tuple[object, ...]:
    return () if how == "connect" else (caller.address, SOCK_PORT)


@HOW
@pytest.mark.parametrize("caller", ["node"], indirect=True)
def test_the_node_itself_is_allowed_by_its_flag(caller: Caller, how: str) -> None:
    restrict(caller.datapath, ONE, OUT[caller.version], RANGES | FrontendFlag.ALLOWS_NODE)
    assert caller.call("in", how) == "server"
    restrict(caller.datapath, ONE, IN[caller.version])
    caller.datapath.events()
    assert caller.call("out", how) == "refused"
    (event,) = caller.datapath.events()
    assert (event.type, -event.reason, event.service_id) == (EventType.DROP, DENIED, ONE)


@HOW
@pytest.mark.parametrize("caller", ["node", "pod", "unknown"], indirect=True)
def test_a_frontend_of_the_node_only(caller: Caller, how: str, request: pytest.FixtureRequest) -> None:
    """hostPorts on the loopback: that of a pod is its own."""
    restrict(caller.datapath, ONE, [], FrontendFlag.NODE_ONLY)
    caller.datapath.tables["nn_service_addr"].update(abi.AddressKey(ip_address(caller.address)), abi.U32(0))
    caller.datapath.events()
    is_node = request.node.callspec.params["caller"] == "node"
    assert caller.call("s", how) == ("server" if is_node else "itself")
    assert all(event.type is not EventType.DROP for event in caller.datapath.events())


def test_a_packet_does_not_use_a_frontend_of_the_node_only(packets: tuple[World, int]) -> None:
    world, _ = packets
    restrict(world.datapath, SERVICE_ID, [], FrontendFlag.NODE_ONLY)
    address = abi.AddressKey(ip_address(world.service))
    world.datapath.tables["nn_service_addr"].update(address, abi.U32(0))
    assert world.out(world.call(TCP(sport=SPORT, dport=PORT))).dst == world.service


@HOW
@pytest.mark.parametrize("caller", ["pod", "unknown"], indirect=True)
def test_a_namespace_without_a_known_address_calls_the_service_itself(caller: Caller, how: str) -> None:
    restrict(caller.datapath, ONE, IN[caller.version], RANGES | FrontendFlag.ALLOWS_NODE)
    assert caller.call("s", how) == "itself"
