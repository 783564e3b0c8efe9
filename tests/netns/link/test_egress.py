"""Masquerading of what leaves the cluster, with two nodes, their pods and a host outside."""

from __future__ import annotations

import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from nodenet.agent.masquerade import Masquerade
from nodenet.config import Config
from nodenet.link import egress
from nodenet.link import netns as namespaces
from nodenet.model import Node, ObjectRef
from nodenet.store import Snapshot

pytestmark = pytest.mark.kernel

LOW, HIGH = 32768, 65535


def address(version: int, text: str) -> str:
    """10.a.b.c, or fd00:a:b::c."""
    first, second, last = text.split(".")
    return f"10.{text}" if version == 4 else str(ip_address(f"fd00:{first}:{second}::{last}"))


@dataclass
class World:
    """`outside` (10.0.0.254) has no route to pods. It also has 10.9.0.1, from which it has one."""

    version: int
    names: dict[str, str]

    def at(self, text: str) -> str:
        return address(self.version, text)

    def sh(self, name: str, script: str) -> str:
        done = namespaces.run(self.names[name], ["sh", "-ec", script], capture_output=True, text=True, check=True)
        return str(done.stdout)

    def open(self, name: str, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        made = namespaces.open_socket(self.names[name], family, kind, protocol)
        made.settimeout(2)
        return made

    def server(self, name: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.open(name, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("" if self.version == 4 else "::", port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def seen(self, client: str, server: str, to: str, port: int = 8080, via: int = 0) -> tuple[str, int]:
        """The client's address as the server sees it, after an exchange over TCP. `via`: the port that it calls."""
        with self.server(server, port) as listener, self.open(client) as caller:
            caller.connect((to, via or port))
            connection, peer = listener.accept()
            with connection:
                connection.sendall(b"x")
                assert caller.recv(1) == b"x"
            return str(peer[0]), int(peer[1])

    def masquerade(self, folder: Path, **keys: Any) -> Masquerade:
        config = Config(
            "node1",
            **{f"masquerade_ipv{self.version}": True, "ip_masq_agent_config": folder / "ip-masq-agent"} | keys,
        )
        return Masquerade(config, lambda: None)

    def check(self, keeper: Masquerade, *more: Node) -> None:
        nodes = [
            Node("node1", (ip_network(self.at("0.0.1")).network_address,), (self.pods(1),)),
            Node("node2", (ip_network(self.at("0.0.2")).network_address,), (self.pods(2),)),
            *more,
        ]
        snapshot = Snapshot(nodes=MappingProxyType({ObjectRef("", node.name): node for node in nodes}))
        namespaces.call(self.names["node1"], keeper.check, snapshot)

    def pods(self, node: int) -> Any:
        return ip_network(f"10.{node}.0.0/24" if self.version == 4 else f"fd00:{node}:0::/64")

    def rules(self) -> str:
        return self.sh("node1", "nft list ruleset")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    version = request.param
    tail = uuid.uuid4().hex[:6]
    names = {name: f"nntest-{name}-{tail}" for name in ("outside", "node1", "node2", "pod1", "pod2")}
    found = World(version, names)
    at, length, mask = found.at, (32 if version == 4 else 128), (24 if version == 4 else 64)
    ip = f"ip -{version}"
    with ExitStack() as stack:
        for name in names.values():
            namespaces.create(name)
            stack.callback(namespaces.delete, name)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            for key in ("default", "all"):
                path = f"/proc/sys/net/ipv6/conf/{key}/accept_dad"
                namespaces.run(name, ["sh", "-c", f"echo 0 > {path}"], check=True)
        found.sh(
            "outside",
            f"ip link add br0 type bridge; ip link set br0 up; {ip} address add {at('0.0.254')}/{mask} dev br0",
        )
        for number in (1, 2):
            node, pod = names[f"node{number}"], names[f"pod{number}"]
            found.sh(
                "outside",
                f"ip link add n{number} type veth peer name eth0 netns {node}; ip link set n{number} master br0 up",
            )
            found.sh(f"node{number}", f"ip link add pod type veth peer name eth0 netns {pod}; ip link set pod up")
            found.sh(
                f"node{number}",
                f"ip link set eth0 up; {ip} address add {at(f'0.0.{number}')}/{mask} dev eth0;"
                f"{ip} address add {at(f'{number}.0.1')}/{mask} dev pod; echo 1 > /proc/sys/net/ipv4/ip_forward;"
                "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding;"
                f"{ip} route add {found.pods(3 - number)} via {at(f'0.0.{3 - number}')};"
                f"{ip} route add default via {at('0.0.254')}",
            )
            found.sh(
                f"pod{number}",
                f"ip link set eth0 up; {ip} address add {at(f'{number}.0.2')}/{mask} dev eth0;"
                f"{ip} route add default via {at(f'{number}.0.1')}",
            )
        # The second address of the outside knows the way back to the pods of node1: a host on a connected network.
        found.sh(
            "outside",
            f"{ip} address add {at('9.0.1')}/{length} dev br0; {ip} rule add from {at('9.0.1')} table 9;"
            f"{ip} route add default via {at('0.0.1')} table 9",
        )
        yield found


def test_the_outside_sees_the_node_and_pods_see_pods(world: World, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="timed out"):
        world.seen("pod1", "outside", world.at("0.0.254"))
    world.check(world.masquerade(tmp_path))
    source, port = world.seen("pod1", "outside", world.at("0.0.254"))
    assert source == world.at("0.0.1")
    assert LOW <= port <= HIGH
    # Pods of another node, other nodes, and pods of this node keep seeing the pod.
    assert world.seen("pod1", "pod2", world.at("2.0.2"))[0] == world.at("1.0.2")
    assert world.seen("node1", "pod1", world.at("1.0.2"))[0] == world.at("1.0.1")
    assert world.seen("pod2", "pod1", world.at("1.0.2"))[0] == world.at("2.0.2")
    # A low source port is not kept, so that it is none of NodePorts'.
    with world.server("outside", 8080) as listener, world.open("pod1") as caller:
        caller.bind(("" if world.version == 4 else "::", 30500))
        caller.connect((world.at("0.0.254"), 8080))
        assert LOW <= listener.accept()[1][1] <= HIGH


def test_datagrams_echoes_and_errors_come_back(world: World, tmp_path: Path) -> None:
    world.check(world.masquerade(tmp_path))
    outside = world.at("0.0.254")
    with world.server("outside", 5353, socket.SOCK_DGRAM) as server, world.open("pod1", socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (outside, 5353))
        data, peer = server.recvfrom(10)
        assert (data, peer[0]) == (b"?", world.at("0.0.1"))
        assert LOW <= peer[1] <= HIGH
        server.sendto(b"!", peer)
        assert client.recv(10) == b"!"
    world.sh("pod1", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")
    protocol, echo, reply = (1, 8, 0) if world.version == 4 else (58, 128, 129)
    with world.open("pod1", socket.SOCK_DGRAM, protocol) as client:
        client.sendto(bytes([echo, 0, 0, 0, 0, 0, 0, 1]) + b"ping", (outside, 0))
        data = client.recv(100)
        assert (data[0], data[8:]) == (reply, b"ping")
    # An ICMP error names the packet after translation: the kernel translates it back to the pod's.
    with world.open("pod1", socket.SOCK_DGRAM) as client:
        client.connect((outside, 9))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)


def test_excluded_networks_see_pods(world: World, tmp_path: Path) -> None:
    host = f"{world.at('9.0.1')}/{32 if world.version == 4 else 128}"
    world.check(world.masquerade(tmp_path))
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("0.0.1")
    world.check(world.masquerade(tmp_path, masquerade_exclude=(ip_network(host),)))
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("1.0.2")
    assert world.seen("pod1", "outside", world.at("0.0.254"))[0] == world.at("0.0.1")
    # As the file of the ip-masq-agent says it; and it may change.
    keeper = world.masquerade(tmp_path)
    for text, wanted in ((f"nonMasqueradeCIDRs: ['{host}']", "1.0.2"), ("nonMasqueradeCIDRs: []", "0.0.1")):
        (tmp_path / "ip-masq-agent").write_text(text)
        world.check(keeper)
        assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at(wanted)


def test_a_file_that_cannot_be_read_changes_nothing(world: World, tmp_path: Path) -> None:
    host = f"{world.at('9.0.1')}/{32 if world.version == 4 else 128}"
    file = tmp_path / "ip-masq-agent"
    file.write_text(f"nonMasqueradeCIDRs: ['{host}']")
    keeper = world.masquerade(tmp_path)
    world.check(keeper)
    file.write_text("nonMasqueradeCIDRs: nonsense")
    world.check(keeper)
    assert len(keeper.problems) == 1
    assert f"{file}: nonMasqueradeCIDRs: expected a list" in keeper.problems[0]
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("1.0.2")
    file.unlink()
    world.check(keeper)
    assert keeper.problems == []
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("0.0.1")


def test_a_node_that_comes_is_excluded(world: World, tmp_path: Path) -> None:
    keeper = world.masquerade(tmp_path)
    world.check(keeper)
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("0.0.1")
    world.check(keeper, Node("node3", (ip_network(world.at("9.0.1")).network_address,)))
    assert world.seen("pod1", "outside", world.at("9.0.1"))[0] == world.at("1.0.2")


def test_node_ports_are_left_alone(world: World, tmp_path: Path) -> None:
    """A NodePort's rules, as kube-proxy makes them with externalTrafficPolicy Local: the pod sees the caller."""
    family = "ip" if world.version == 4 else "ip6"
    to = world.at("1.0.2") if world.version == 4 else f"[{world.at('1.0.2')}]"
    world.sh(
        "node1",
        f"nft add table {family} proxy; nft 'add chain {family} proxy pre "
        "{ type nat hook prerouting priority dstnat; }';"
        f"nft add rule {family} proxy pre tcp dport 30080 dnat to {to}:8080",
    )
    world.check(world.masquerade(tmp_path))
    caller = world.seen("outside", "pod1", world.at("0.0.1"), 8080, via=30080)
    assert caller[0] == world.at("0.0.254")


def test_connections_survive_a_change_of_the_rules(world: World, tmp_path: Path) -> None:
    keeper = world.masquerade(tmp_path)
    world.check(keeper)
    with world.server("outside", 8080) as listener, world.open("pod1") as caller:
        caller.connect((world.at("0.0.254"), 8080))
        connection, _ = listener.accept()
        with connection:
            world.check(keeper, Node("node3", (ip_network(world.at("9.0.1")).network_address,)))
            caller.sendall(b"x")
            assert connection.recv(1) == b"x"
            connection.sendall(b"y")
            assert caller.recv(1) == b"y"


def test_what_another_program_changes_is_put_back_and_nothing_else_is_written(world: World, tmp_path: Path) -> None:
    keeper = world.masquerade(tmp_path)
    family = "ip" if world.version == 4 else "ip6"
    world.check(keeper)

    def handles() -> str:
        return world.sh("node1", f"nft -a list table {family} nodenet-egress")

    before = handles()
    for _ in range(2):
        world.check(keeper)
    world.sh("node1", f"nft add table {family} other; nft add chain {family} other c")
    world.check(keeper)
    assert (handles(), keeper.repairs) == (before, 0)
    network = f"{world.at('8.0.0')}/{24 if world.version == 4 else 64}"
    for number, change in enumerate(
        (
            f"delete table {family} nodenet-egress",
            f"flush chain {family} nodenet-egress rules",
            f"insert rule {family} nodenet-egress rules accept",
            f"add element {family} nodenet-egress excluded {{ {network} }}",
            f"add table {family} nodenet-egress {{ flags dormant; }}",
            "flush ruleset",
        ),
        1,
    ):
        world.sh("node1", f"nft '{change}'")
        world.check(keeper)
        assert keeper.repairs == number, change
        assert world.seen("pod1", "outside", world.at("0.0.254"))[0] == world.at("0.0.1")


def test_switched_off_it_leaves_nothing(world: World, tmp_path: Path) -> None:
    world.check(world.masquerade(tmp_path))
    assert "nodenet-egress" in world.rules()
    off = Masquerade(Config("node1", ip_masq_agent_config=tmp_path / "none"), lambda: None)
    world.check(off)
    assert "nodenet-egress" not in world.rules()
    world.check(off)
    assert off.problems == []


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("left", [[], [Node("node1")]], ids=["no Node", "no podCIDRs"])
def test_without_pod_networks_the_rules_stay(world: World, tmp_path: Path, left: list[Node], restarted: bool) -> None:
    """The Node was deleted and comes again, and its podCIDRs come later."""
    keeper = world.masquerade(tmp_path)
    world.check(keeper)
    before = world.rules()
    if restarted:
        keeper = world.masquerade(tmp_path)
    nodes = Snapshot(nodes=MappingProxyType({ObjectRef("", node.name): node for node in left}))
    namespaces.call(world.names["node1"], keeper.check, nodes)
    assert world.rules() == before
    assert world.seen("pod1", "outside", world.at("0.0.254"))[0] == world.at("0.0.1")
    why, kept = keeper.problems
    assert ("no spec.podCIDRs yet" if left else "no Node of this name") in why
    assert f"no IPv{world.version} network of this node's pods is known: the rules for the last ones stay" in kept
    world.check(keeper)
    assert keeper.problems == []


def test_a_cluster_of_thousands_of_nodes(world: World, tmp_path: Path) -> None:
    """More elements than fit into one message, or into a default send buffer (208 KiB)."""
    size = 24 if world.version == 4 else 64
    nodes = [
        Node(
            f"n{number}",
            (ip_address(0x0C000000 + number * 2),),
            (ip_network(f"11.{number >> 7}.{number % 128 * 2}.0/24"),),
        )
        if world.version == 4
        else Node(f"n{number}", (ip_address(f"fd12::{number * 2:x}"),), (ip_network(f"fd11:0:0:{number * 2:x}::/64"),))
        for number in range(3000)
    ]
    keeper = world.masquerade(tmp_path)
    world.check(keeper, *nodes)
    assert keeper.problems == []
    world.check(keeper, *nodes)
    assert keeper.repairs == 0
    assert world.rules().count(f"/{size}") > 3000
    assert namespaces.call(world.names["node1"], egress.digest, world.version)
