"""The real portmap, bandwidth and tuning after us, as a runtime chains them, with traffic."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.agent import attachment
from nodenet.agent.attachment import HOOKS
from nodenet.bpf import tcx
from nodenet.link import netns
from nodenet.link.handle import Link
from tests.netns.link.programs import NEXT, load

PLUGINS = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not (PLUGINS / "portmap").exists(), reason="no reference plugins: apt-get install containernetworking-plugins"
    ),
]
BYTES = 2_000_000


class Chain:
    """A conflist, run as libcni runs one: prevResult from plugin to plugin, DEL backwards with the last result."""

    def __init__(self, world: Any, later: list[dict[str, Any]], runtime: dict[str, Any], **keys: Any) -> None:
        self.world = world
        first = json.loads(world.conf(cniVersion="1.0.0", **keys))
        self.plugins = [first, *({"cniVersion": "1.0.0", "name": "net"} | plugin for plugin in later)]
        self.runtime = runtime

    def run(self, verb: str, container: str, pod: str, result: Any = None) -> Any:
        plugins = self.plugins if verb != "DEL" else list(reversed(self.plugins))
        if verb == "CHECK":
            # portmap's own (1.1.1) looks for every rule in both families, and so never succeeds.
            plugins = [plugin for plugin in plugins if plugin["type"] != "portmap"]
        for plugin in plugins:
            conf = {**plugin, "runtimeConfig": self.runtime}
            if result is not None:
                conf["prevResult"] = result
            stdin = json.dumps(conf).encode()
            if plugin["type"] == "nodenet":
                reply = self.world.call(verb, container, pod, stdin)
                status, out = reply.status, reply.stdout
            else:
                env = self.world.env(verb, container, pod) | {
                    "CNI_ARGS": "",
                    "CNI_PATH": str(PLUGINS),
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                }
                done = netns.run(self.world.node, [PLUGINS / plugin["type"]], env=env, input=stdin, capture_output=True)
                status, out = done.returncode, done.stdout
            assert status == 0, (plugin["type"], out)
            if verb == "ADD":
                result = json.loads(out)
        return result


@contextlib.contextmanager
def listening(pod: str, port: int) -> Iterator[None]:
    """A server in the pod that takes what comes and answers "ok" at its end."""
    server = netns.open_socket(pod, socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("0.0.0.0", port))
    server.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = server.accept()
                with peer:
                    while peer.recv(1 << 16):
                        pass
                    peer.sendall(b"ok")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def send(where: Any, address: str, port: int, data: bytes = b"x") -> bytes:
    """What the server answers, b"" when there is none."""
    with netns.open_socket(where, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect((address, port))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(16)
        except OSError:
            return b""


@pytest.fixture
def outside(world: Any) -> str:
    path = str(world.pod())
    for line in (
        f"link add up0 type veth peer name eth0 netns {Path(path).name}",
        "addr add 192.0.2.1/24 dev up0",
        "link set up0 up",
        "link set lo up",
    ):
        netns.run(world.node, ["ip", *line.split()], check=True)
    for line in ("addr add 192.0.2.2/24 dev eth0", "link set eth0 up"):
        netns.run(path, ["ip", *line.split()], check=True)
    return path


def test_traffic_through_a_host_port(world: Any, outside: str) -> None:
    """From beyond the node, from the node, and from the pod itself (hairpin), then CHECK and DEL through the chain."""
    chain = Chain(
        world,
        [{"type": "portmap", "snat": True}, {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}}],
        {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        hairpinMode=True,
        ipMasq=True,
    )
    pod = world.pod()
    result = chain.run("ADD", "c1", pod)
    assert [ip["address"] for ip in result["ips"]] == ["10.77.0.2/24", "fd77::2/64"]
    with listening(pod, 80):
        assert send(outside, "192.0.2.1", 8080) == b"ok"
        assert send(world.node, "192.0.2.1", 8080) == b"ok"
        assert send(world.node, "127.0.0.1", 8080) == b"ok"
        assert send(pod, "192.0.2.1", 8080) == b"ok"
        assert netns.call(pod, Path("/proc/sys/net/core/somaxconn").read_text).strip() == "321"
        chain.run("CHECK", "c1", pod, result)
        chain.run("DEL", "c1", pod, result)
        chain.run("DEL", "c1", pod, result)
    assert send(world.node, "192.0.2.1", 8080) == b""
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == ["up0"]


def test_bandwidth_and_a_mac_of_tuning(world: Any) -> None:
    """bandwidth shapes on our veth; tuning gives the pod another MAC after us, and CHECK goes by the last result."""
    chain = Chain(
        world,
        [{"type": "tuning", "mac": "02:00:00:00:00:55"}, {"type": "bandwidth"}],
        {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 0, "egressBurst": 0}},
    )
    pod = world.pod()
    result = chain.run("ADD", "c1", pod)
    with Link(pod) as inside:
        assert inside.require("eth0").mac == "02:00:00:00:00:55"
    with listening(pod, 80):
        began = time.monotonic()
        assert send(world.node, "10.77.0.2", 80, bytes(BYTES // 2)) == b"ok"
        # 8 Mbit in all at 8 Mbit/s, less the burst of 0.8 Mbit.
        assert time.monotonic() - began > 0.6
    chain.run("CHECK", "c1", pod, result)
    chain.run("DEL", "c1", pod, result)
    assert world.interfaces(pod) == ["lo"]
    assert world.left() == []


def test_check_after_plugins_that_change_what_we_made(world: Any) -> None:
    """tuning with another MTU, which its result does not tell, and sbr, which moves the routes to a table of their
    own."""
    chain = Chain(world, [{"type": "tuning", "mtu": 1300}, {"type": "sbr"}], {}, ranges=[[{"subnet": "10.77.0.0/24"}]])
    pod = world.pod()
    result = chain.run("ADD", "c1", pod)
    with Link(pod) as inside:
        assert inside.require("eth0").mtu == 1300
    shown = netns.run(pod, ["ip", "route", "show", "default", "table", "all"], capture_output=True, text=True).stdout
    assert "default via 10.77.0.1 dev eth0 table 100" in shown
    chain.run("CHECK", "c1", pod, result)
    chain.run("DEL", "c1", pod, result)
    assert world.left() == []


def test_a_limit_of_what_a_pod_sends_behind_programs_on_its_veth(world: Any) -> None:
    """kubernetes.io/egress-bandwidth on a node with an agent: the plugin's ingress discipline finds its place, and
    sees what our programs let through."""
    if not tcx.available():
        pytest.skip("this kernel has no tcx (6.6 has it): clsact takes the place")
    rates = {"ingressRate": 0, "ingressBurst": 0, "egressRate": 8_000_000, "egressBurst": 800_000}
    chain = Chain(world, [], {"bandwidth": rates})
    pod = world.pod()
    result = chain.run("ADD", "c1", pod)
    programs = {name: load(name, NEXT) for name in HOOKS}

    def attach() -> None:
        with Link() as link:
            host = link.require(result["interfaces"][1]["name"])
            attachment.attach_new(link, host.index, programs)
            assert attachment.missing(link, host.index, programs) == []

    netns.call(world.node, attach)
    for fd in programs.values():
        os.close(fd)
    first = chain.plugins.pop()
    chain.plugins.append({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth"})
    result = chain.run("ADD", "c1", pod, result)
    chain.plugins.insert(0, first)
    with listening(str(world.node), 80):
        began = time.monotonic()
        assert send(pod, "10.77.0.1", 80, bytes(BYTES // 2)) == b"ok"
        # 8 Mbit in all at 8 Mbit/s, less the burst of 0.8 Mbit.
        assert time.monotonic() - began > 0.6
    chain.run("DEL", "c1", pod, result)
    assert world.left() == []
