"""Service translation at the socket: real sockets of a process in a throwaway cgroup and network namespace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nodenet import abi
from nodenet.abi import DropReason, EventType
from nodenet.bpf import loader

from .conftest import Datapath

pytestmark = pytest.mark.kernel

SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
LOCAL = {4: "127.0.0.1", 6: "::1"}
SERVICE_ID = 77

# Runs inside the cgroup and the namespace; one JSON line of results.
CLIENT = """
import json, os, socket, sys
plan = json.loads(sys.argv[1])
open(plan["cgroup"] + "/cgroup.procs", "w").write(str(os.getpid()))
kind = socket.SOCK_STREAM if plan["protocol"] == 6 else socket.SOCK_DGRAM
family = socket.AF_INET6 if ":" in plan["address"] else socket.AF_INET
server_family = socket.AF_INET6 if ":" in plan["backend"] else socket.AF_INET
server = socket.socket(server_family, kind)
server.bind((plan["backend"], plan["backend_port"]))
if kind == socket.SOCK_STREAM:
    server.listen(8)
client = socket.socket(family, kind)
client.settimeout(5)
out = {}
try:
    if plan["how"] == "connect-only":
        client.connect((plan["address"], plan["port"]))
        out["peer"] = client.getpeername()[:2]
    elif plan["how"] == "scale":
        # Datagrams of one socket, before and after the Service is scaled (a line on stdin says that it was).
        servers = [server] + [socket.socket(server_family, kind) for _ in range(7)]
        for offset, other in enumerate(servers[1:], 1):
            other.bind((plan["backend"], plan["backend_port"] + offset))
        import select
        out["ports"] = []
        for turn in range(2):
            for _ in range(10):
                client.sendto(b"ping", (plan["address"], plan["port"]))
            for ready in select.select(servers, [], [], 2)[0]:
                out["ports"].append(ready.getsockname()[1])  # one per turn
                while select.select([ready], [], [], 0)[0]:
                    ready.recvfrom(16)
            if turn == 0:
                print("sent", flush=True)
                sys.stdin.readline()
    elif plan["how"] == "connect":
        client.connect((plan["address"], plan["port"]))
        out["peer"] = client.getpeername()[:2]
        if kind == socket.SOCK_STREAM:
            server.accept()[0].sendall(b"hello")
            out["received"] = client.recv(16).decode()
        else:
            client.send(b"ping")
            data, source = server.recvfrom(16)
            server.sendto(b"pong", source)
            data, source = client.recvfrom(16)
            out["received"], out["from"] = data.decode(), source[:2]
    else:
        client.sendto(b"ping", (plan["address"], plan["port"]))
        server.settimeout(5)
        data, source = server.recvfrom(16)
        server.sendto(b"pong", source)
        data, source = client.recvfrom(16)
        out["received"], out["from"] = data.decode(), source[:2]
except OSError as error:
    out["errno"] = error.errno
print(json.dumps(out))
"""


class Sockets:
    def __init__(self, datapath: Datapath, cgroup: Path, netns: str) -> None:
        self.datapath, self.cgroup, self.netns = datapath, cgroup, netns

    def service(self, version: int, port: int, protocol: int, backend: str | None, backend_port: int = 9000) -> None:
        address = ip_address(SERVICE[version])
        tables = self.datapath.tables
        if backend:
            tables["nn_backend"].update(abi.U32(5), abi.AddressPort(ip_address(backend), backend_port, protocol))
            tables["nn_frontend"].update(
                abi.FrontendKey(address, port, protocol, 1), abi.FrontendEntry(5, SERVICE_ID, 0)
            )
        tables["nn_revnat"].update(abi.U32(SERVICE_ID), abi.AddressPort(address, port, protocol))
        tables["nn_frontend"].update(
            abi.FrontendKey(address, port, protocol, 0), abi.FrontendEntry(0, SERVICE_ID, 1 if backend else 0)
        )
        tables["nn_service_addr"].update(abi.AddressKey(address), abi.U32(abi.AddressFlag.REFUSE_UNSERVED))

    def command(self, address: str, port: int, protocol: int, backend: str, how: str = "connect") -> list[str]:
        plan = {
            "cgroup": str(self.cgroup),
            "address": address,
            "port": port,
            "protocol": protocol,
            "backend": backend,
            "backend_port": 9000,
            "how": how,
        }
        return ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, "-I", "-S", "-c", CLIENT, json.dumps(plan)]

    def call(self, *how: Any) -> dict[str, object]:
        done = subprocess.run(self.command(*how), capture_output=True, text=True, timeout=30, check=True)
        result: dict[str, object] = json.loads(done.stdout)
        return result


@pytest.fixture
def sockets(datapath: Datapath, cgroup: Path, netns: str) -> Iterator[Sockets]:
    for name in ("nn_frontend", "nn_backend", "nn_revnat"):
        for key, _ in list(datapath.tables[name].items()):
            datapath.tables[name].delete(key)
    loader.attach_cgroup(datapath.loaded, cgroup, datapath.pins)
    try:
        yield Sockets(datapath, cgroup, netns)
    finally:
        for link in datapath.pins.links.iterdir():
            link.unlink()


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_connects_to_the_backend_and_sees_the_service(sockets: Sockets, version: int) -> None:
    sockets.service(version, 80, 6, LOCAL[version])
    result = sockets.call(SERVICE[version], 80, 6, LOCAL[version])
    assert result == {"peer": [SERVICE[version], 80], "received": "hello"}
    (event,) = sockets.datapath.events()
    assert (event.type, event.service_id, str(event.daddr), event.dport) == (
        EventType.SOCK,
        SERVICE_ID,
        LOCAL[version],
        9000,
    )
    assert event.cookie != 0  # the network namespace's


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("how", ["connect", "sendto"])
def test_udp_answers_come_from_the_service(sockets: Sockets, version: int, how: str) -> None:
    sockets.service(version, 53, 17, LOCAL[version])
    result = sockets.call(SERVICE[version], 53, 17, LOCAL[version], how)
    assert result["received"] == "pong"
    assert result["from"] == [SERVICE[version], 53]


def test_ipv4_mapped_address_on_an_ipv6_socket(sockets: Sockets) -> None:
    sockets.service(4, 80, 6, LOCAL[4])
    result = sockets.call("::ffff:" + SERVICE[4], 80, 6, LOCAL[4])
    assert result == {"peer": ["::ffff:" + SERVICE[4], 80], "received": "hello"}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_no_backend_is_refused_at_once(sockets: Sockets, version: int, protocol: int) -> None:
    sockets.service(version, 80, protocol, None)
    assert sockets.call(SERVICE[version], 80, protocol, LOCAL[version]) == {"errno": 111}
    (event,) = sockets.datapath.events()
    assert (event.type, -event.reason, event.service_id) == (
        EventType.DROP,
        DropReason.SERVICE_BACKEND_NOT_FOUND,
        SERVICE_ID,
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "how"), [(6, "connect"), (17, "connect"), (17, "sendto")])
def test_backends_only_elsewhere_are_not_a_refusal(sockets: Sockets, version: int, protocol: int, how: str) -> None:
    """The traffic policy is Local. Without a pod's interface to drop the packet, the call fails: EPERM."""
    sockets.service(version, 80, protocol, None)
    key = abi.FrontendKey(ip_address(SERVICE[version]), 80, protocol, 0)
    entry = abi.FrontendEntry(0, SERVICE_ID, 0, abi.FrontendFlag.ONLY_ELSEWHERE)
    sockets.datapath.tables["nn_frontend"].update(key, entry)
    assert sockets.call(SERVICE[version], 80, protocol, LOCAL[version], how) == {"errno": 1}
    (event,) = sockets.datapath.events()
    assert (event.type, -event.reason, event.service_id) == (
        EventType.DROP,
        DropReason.SERVICE_BACKEND_NOT_FOUND,
        SERVICE_ID,
    )


@pytest.mark.parametrize("version", [4, 6])
def test_another_scope_is_another_frontend(sockets: Sockets, version: int) -> None:
    """A socket is inside: it does not use what is for traffic from outside."""
    sockets.service(version, 80, 6, LOCAL[version])
    table = sockets.datapath.tables["nn_frontend"]
    outside = abi.FrontendKey(ip_address(SERVICE[version]), 80, 6, 0, abi.FrontendScope.EXTERNAL)
    table.update(outside, abi.FrontendEntry(0, SERVICE_ID, 0))
    assert sockets.call(SERVICE[version], 80, 6, LOCAL[version])["received"] == "hello"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_other_ports_of_an_address_that_is_no_cluster_ip(sockets: Sockets, version: int, protocol: int) -> None:
    """A NodePort is on the node's own address: the node's other ports are its own."""
    sockets.service(version, 9001, protocol, LOCAL[version])
    sockets.datapath.tables["nn_service_addr"].update(abi.AddressKey(ip_address(LOCAL[version])), abi.U32(0))
    result = sockets.call(LOCAL[version], 9000, protocol, LOCAL[version])
    assert result["received"] == ("hello" if protocol == 6 else "pong")
    assert sockets.datapath.events() == []


@pytest.mark.parametrize("version", [4, 6])
def test_unserved_port_of_a_service_address_is_refused(sockets: Sockets, version: int) -> None:
    sockets.service(version, 80, 6, LOCAL[version])
    assert sockets.call(SERVICE[version], 81, 6, LOCAL[version]) == {"errno": 111}
    (event,) = sockets.datapath.events()
    assert (event.type, -event.reason) == (EventType.DROP, DropReason.IS_A_CLUSTERIP)


@pytest.mark.parametrize("version", [4, 6])
def test_connecting_a_datagram_socket_to_an_unserved_port_succeeds(sockets: Sockets, version: int) -> None:
    """Resolvers do it to sort addresses; nothing is sent, nothing is told."""
    subprocess.run(["ip", "-n", sockets.netns, "route", "add", SERVICE[version], "dev", "lo"], check=True)
    sockets.service(version, 80, 6, LOCAL[version])
    result = sockets.call(SERVICE[version], 9, 17, LOCAL[version], "connect-only")
    assert result == {"peer": [SERVICE[version], 9]}
    assert sockets.datapath.events() == []


def test_datagrams_of_one_socket_keep_their_backend_when_the_service_is_scaled(sockets: Sockets) -> None:
    address = ip_address(SERVICE[4])
    tables = sockets.datapath.tables

    def scale(count: int) -> None:
        for slot in range(1, count + 1):
            backend = abi.AddressPort(ip_address(LOCAL[4]), 8999 + slot, 17)
            tables["nn_backend"].update(abi.U32(slot), backend)
            tables["nn_member"].update(abi.MemberKey(SERVICE_ID, slot), backend)
            tables["nn_frontend"].update(abi.FrontendKey(address, 53, 17, slot), abi.FrontendEntry(slot, SERVICE_ID, 0))
        tables["nn_frontend"].update(abi.FrontendKey(address, 53, 17, 0), abi.FrontendEntry(0, SERVICE_ID, count))

    scale(4)
    command = sockets.command(SERVICE[4], 53, 17, LOCAL[4], "scale")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        scale(8)
        out, _ = process.communicate("scaled\n", timeout=30)
    before, after = json.loads(out)["ports"]
    assert before == after


@pytest.mark.parametrize("version", [4, 6])
def test_other_addresses_are_left_alone(sockets: Sockets, version: int) -> None:
    result = sockets.call(LOCAL[version], 9000, 6, LOCAL[version])
    assert result == {"peer": [LOCAL[version], 9000], "received": "hello"}
    assert sockets.datapath.events() == []
