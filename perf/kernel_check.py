"""Runs in a virtual machine: checks that its kernel loads the datapath, and that Services and policy work. Prints one
JSON line.

perf/kernels.py runs it as `python -m perf.kernel_check OBJECTS`: JSON, the object file of each program, first those
without bpf_cast_to_kern_ctx, then those with it (nodenet.bpf.build). One process does everything, because each start of
a process takes a second there. It calls the real loader, CNI plugin and compiler, makes three pods on the bridge, and
opens sockets in their namespaces. The root namespace of the virtual machine is the node.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path

from nodenet import abi, kinds, tables
from nodenet.agent import attachment
from nodenet.agent.features import features
from nodenet.bpf import loader, probe
from nodenet.bpf.grace import ProgramsGrace
from nodenet.bpf.packet_run import run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.ringbuf import EventReader
from nodenet.bpf.tables import BpfTable
from nodenet.cni.plugin import Plugin
from nodenet.cni.request import parse
from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.errors import NodenetError
from nodenet.kube.decode import decode
from nodenet.link import addresses, netns
from nodenet.link.handle import Link, mac_bytes
from nodenet.model import Endpoint
from nodenet.store import listings
from perf.kernel_objects import SERVICE, cni_conf, objects
from perf.kernel_packets import check_packets, frame, udp

PINS = Path("/sys/fs/bpf/nodenet")
CGROUP = Path("/sys/fs/cgroup")
PODS = ("client", "other", "web")
# Seconds to wait for an answer, which takes milliseconds, and to be sure that a dropped packet does not arrive.
ANSWER = 5.0
SILENCE = 0.6
# Number of datagrams sent to the Service to find out which path packets take.
_TRIPS = 6
# asm-generic/socket.h (Linux 5.14)
_SO_NETNS_COOKIE = 71
# linux/if_packet.h
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_UDP = 17


@dataclass(slots=True)
class Report:
    """The report to the host. `checks` is {part: {check: "" or the problem}}."""

    release: str = ""
    missing: list[dict[str, str]] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    checks: dict[str, dict[str, str]] = field(default_factory=dict)
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self, part: str, name: str, function: Callable[[], None]) -> None:
        """Run one check. An exception is its result."""
        try:
            function()
        except (AssertionError, OSError, NodenetError) as error:
            self.checks.setdefault(part, {})[name] = f"{type(error).__name__}: {error}"
        else:
            self.checks.setdefault(part, {})[name] = ""

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 3)


class Node:
    """Three pods on a bridge, and the datapath with one configuration at a time."""

    def __init__(self, report: Report, objects: list[dict[str, Path]]) -> None:
        self.report = report
        self.objects = objects
        self.features = features()
        self.report.missing = [
            {"feature": f.name, "without": f"{f.purpose}: without it, {f.without}"}
            for f in self.features
            if not f.available
        ]
        self.link = Link()
        self.pods: dict[str, Endpoint] = {}
        self.tables: dict[str, BpfTable] = {}
        self.events: list[abi.Event] = []
        self.reader: EventReader | None = None

    def has(self, feature: str) -> bool:
        return probe.available(self.features, feature)

    def add_pods(self) -> None:
        """Call the CNI plugin's ADD for each pod."""
        self.link.set("lo", state="up")
        plugin = Plugin()
        for name in PODS:
            namespace = netns.create(name)
            environment = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": name,
                "CNI_NETNS": str(namespace),
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}",
            }
            self.pods[name] = plugin.add(parse(environment, cni_conf())).endpoint
        plugin.close()

    def load(self, redirect_peer: bool) -> None:
        """Load the programs, attach them to the pods and the cgroup, and fill the maps from Kubernetes objects."""
        self.unload()
        config = loader.DatapathConfig(
            redirect_peer=redirect_peer,
            refuse_errno=self.has("helper set_retval"),
            kernel_structs=self.has(probe.OFFLOAD),
            serve_uplinks=True,
        )
        pins = Pins(PINS)
        with self.report.timed("load"):
            loaded = loader.load(self.objects[self.has(probe.CAST_CTX)], config, pins)
        self.report.programs = sorted(loaded.programs)
        self.programs = loaded.programs
        self.tables = {name: BpfTable(name, pins.map(name)) for name in tables.KEYED}
        self.reader = EventReader(pins.map("nn_events"), lambda raw: self.events.append(abi.Event.unpack(raw)))
        self.fill()
        for endpoint in self.pods.values():
            attachment.attach(self.link, endpoint.host_ifindex, loaded.programs)
        loader.attach_cgroup(loaded, CGROUP, pins)

    def fill(self) -> None:
        """Do one run of the agent's engine with Kubernetes objects and endpoints."""
        known: list[object] = []
        for document in objects({name: endpoint.ips for name, endpoint in self.pods.items()}):
            decoded = decode(kinds.BY_NAME[document["kind"]], json.dumps(document).encode())
            assert decoded.obj is not None
            known.append(decoded.obj)
        for endpoint in self.pods.values():
            number = self.link.require(endpoint.host_ifindex).peer_netns
            known.append(replace(endpoint, netns_id=number))
        own = frozenset(entry.ip for entry in addresses.local(self.link) if not entry.ip.is_loopback)
        with contextlib.closing(ProgramsGrace()) as grace:
            engine = Engine(LocalNode("node1", own), self.tables, grace)
            engine.feed(*listings(known))
            engine.run_once()
            grace.wait()

    def unload(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        for table in self.tables.values():
            table.close()

    def drops(self) -> list[abi.Event]:
        """The drop events since the last call."""
        assert self.reader is not None
        while self.reader.consume():
            pass
        taken = [event for event in self.events if event.type == abi.EventType.DROP]
        self.events.clear()
        return taken

    def address(self, pod: str, version: int) -> str:
        return str(next(ip for ip in self.pods[pod].ips if ip.version == version))

    def socket(self, pod: str, version: int, kind: int) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = netns.open_socket(netns.path_of(pod), family, kind)
        made.settimeout(ANSWER)
        # The next check uses the same port while the connection of the last one may be in TIME_WAIT.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def bridged(self) -> int:
        """The number of packets that the bridge has sent to the web pod. With redirection, packets bypass the
        bridge."""
        name = self.pods["web"].host_ifname
        return int(Path(f"/sys/class/net/{name}/statistics/tx_packets").read_text())


def tcp_through(node: Node, version: int, pod: str = "client") -> None:
    """Check a connection to the Service's address: data in both directions, and the peer's address on both sides."""
    with node.socket("web", version, socket.SOCK_STREAM) as server, node.socket(pod, version, socket.SOCK_STREAM) as c:
        server.bind((node.address("web", version), 8080))
        server.listen(4)
        c.connect((SERVICE[version], 80))
        assert c.getpeername()[:2] == (SERVICE[version], 80), f"getpeername: {c.getpeername()[:2]}"
        accepted, source = server.accept()
        with accepted:
            assert source[0] == node.address(pod, version), f"the server sees {source[0]}"
            c.sendall(b"ping")
            assert accepted.recv(8) == b"ping"
            accepted.sendall(b"pong")
            assert c.recv(8) == b"pong"


def service_of(node: Node, pod: str, connected: socket.socket) -> abi.AddressPort | None:
    """The Service that a connected UDP socket of the pod called, as the agent finds it."""
    local, port = connected.getsockname()[:2]
    # Not getpeername(): it shows the Service.
    backend = node.address("web", 4 if "." in local else 6)
    question = abi.SockQuestion(ip_address(local), ip_address(backend), port, 8053).pack()
    program = node.programs[loader.SOCK_SERVICE]
    number = netns.call(netns.path_of(pod), run_packet, program, question).verdict
    found: abi.AddressPort | None = node.tables["nn_revnat"].get(abi.U32(number & 0xFFFFFFFF))
    return found


def udp_through(node: Node, version: int, pod: str = "client", *, connected: bool = False) -> None:
    """Check a datagram to the Service's address, and that the answer comes from the Service's address."""
    with node.socket("web", version, socket.SOCK_DGRAM) as server, node.socket(pod, version, socket.SOCK_DGRAM) as c:
        server.bind((node.address("web", version), 8053))
        if connected:
            c.connect((SERVICE[version], 53))
            called = service_of(node, pod, c)
            assert called == abi.AddressPort(ip_address(SERVICE[version]), 53, 17), f"sock_service: {called}"
            c.send(b"ping")
        else:
            c.sendto(b"ping", (SERVICE[version], 53))
        data, source = server.recvfrom(8)
        server.sendto(b"pong", source)
        data, source = c.recvfrom(8)
        assert (data, source[:2]) == (b"pong", (SERVICE[version], 53)), f"answer {data!r} from {source[:2]}"


def refused(node: Node, version: int) -> None:
    """Check that connect() to a Service without backends fails at once, with the errno that this kernel allows."""
    expected = errno.ECONNREFUSED if node.has("helper set_retval") else errno.EPERM
    with node.socket("client", version, socket.SOCK_STREAM) as client:
        code = client.connect_ex((SERVICE[version], 81))
    assert code == expected, f"connect: {errno.errorcode.get(code, code)}, not {errno.errorcode[expected]}"
    # On a slow machine, packets of earlier checks may be dropped late. So count only events with this Service's
    # address.
    drops = [event for event in node.drops() if (str(event.daddr), event.dport) == (SERVICE[version], 81)]
    assert len(drops) == 1, drops
    (event,) = drops
    assert -event.reason == abi.DropReason.SERVICE_BACKEND_NOT_FOUND, f"drop reason {event.reason}"


def direct(node: Node, version: int) -> None:
    """Check a connection from pod to pod without a Service, on the allowed port."""
    with node.socket("web", version, socket.SOCK_STREAM) as server:
        server.bind((node.address("web", version), 8080))
        server.listen(4)
        with node.socket("client", version, socket.SOCK_STREAM) as client:
            client.connect((node.address("web", version), 8080))


def picked_up(node: Node, version: int, *, known: bool, listens: bool = True) -> None:
    """Check that the server, which has no allowed egress, may send first on a connection that conntrack has lost. If
    the pod's namespace is not known, its socket is reset instead."""
    with (
        node.socket("web", version, socket.SOCK_STREAM) as server,
        node.socket("client", version, socket.SOCK_STREAM) as c,
    ):
        server.bind((node.address("web", version), 8080))
        server.listen(4)
        c.connect((node.address("web", version), 8080))
        accepted, _ = server.accept()
        if not listens:
            server.close()
        with accepted:
            accepted.settimeout(ANSWER)
            for key, _ in list(node.tables["nn_ct"].items()):
                node.tables["nn_ct"].delete(key)
            place = abi.AddressKey(ip_address(node.address("web", version)))
            entry = node.tables["nn_endpoint"].get(place)
            if not known:
                node.tables["nn_endpoint"].update(place, entry._replace(netns=0))
            try:
                accepted.sendall(b"news")
                if known:
                    assert c.recv(8) == b"news"
                else:
                    # Close the client's socket with a RST: it would repeat a FIN, and later checks count drops.
                    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    with contextlib.suppress(ConnectionResetError):
                        raise AssertionError(f"the socket was not reset, but read {accepted.recv(8)!r}")
            finally:
                node.tables["nn_endpoint"].update(place, entry)


def denied(node: Node, pod: str, version: int, kind: int, port: int) -> None:
    """Check that no packet arrives, and that the drop event has the reason and both identities."""
    node.drops()
    target = (node.address("web", version), port)
    with node.socket("web", version, kind) as server, node.socket(pod, version, kind) as client:
        server.bind(target)
        server.settimeout(SILENCE)
        client.settimeout(SILENCE)
        if kind == socket.SOCK_STREAM:
            server.listen(4)
            code = client.connect_ex(target)
            assert code in (errno.EAGAIN, errno.ETIMEDOUT, errno.EINPROGRESS), f"connect: {errno.errorcode.get(code)}"
        else:
            client.sendto(b"ping", target)
            with contextlib.suppress(TimeoutError):
                raise AssertionError(f"the datagram arrived: {server.recvfrom(8)!r}")
    # On a slow machine, packets of earlier checks may be dropped late. So count only events of this flow.
    ends = (ip_address(node.address(pod, version)), ip_address(target[0]), port)
    found = [event for event in node.drops() if (event.saddr, event.daddr, event.dport) == ends]
    assert found, "no drop event"
    assert all(-event.reason == abi.DropReason.POLICY_DENIED for event in found), f"reasons {found}"


def other_source(node: Node, version: int) -> None:
    """Check that a pod cannot send with another pod's address: neither the packet nor the ARP request before it."""
    node.drops()
    foreign = node.address("web", version)
    inside = netns.path_of("client")
    bits = 32 if version == 4 else 128
    address = ip_interface(f"{foreign}/{bits}")
    with Link(inside) as link:
        index = link.require("eth0").index
        addresses.add(link, index, address)
        with node.socket("client", version, socket.SOCK_DGRAM) as client:
            client.bind((foreign, 0))
            client.sendto(b"ping", (node.address("other", version), 9))
        addresses.remove(link, index, address)
    reasons = {-event.reason for event in node.drops()}
    assert abi.DropReason.INVALID_SOURCE_IP in reasons, f"drop reasons {reasons}"


def unfinished_elsewhere(node: Node, version: int) -> None:
    """Check that a packet with an unfinished checksum that would be written to the destination port (PACKET_VNET_HDR)
    does not leave the pod."""
    node.drops()
    packet = frame(node.address("client", version), node.address("web", version), _UDP, udp(5, 8080))
    macs = bytes(6) + mac_bytes(node.pods["client"].mac)
    transport = 34 if version == 4 else 54
    # struct virtio_net_hdr: VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start, csum_offset
    header = struct.pack("<BBHHHH", 1, 0, 0, 0, transport, 2)
    with netns.open_socket(netns.path_of("client"), socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sock.bind(("eth0", 0))
        sock.send(header + macs + packet[12:])
    reasons = [-event.reason for event in node.drops()]
    assert abi.DropReason.ERROR_WHILE_CORRECTING_L4_CHECKSUM in reasons, f"drop reasons {reasons}"


def check_path(node: Node, report: Report, path: str, redirect: bool) -> None:
    """Check Services and policy on one of the two same-node paths."""
    for version in (4, 6):
        family = f"ipv{version} {path}"
        report.check("services", f"tcp {family}", partial(tcp_through, node, version))
        report.check("services", f"udp {family}", partial(udp_through, node, version))
        report.check("services", f"udp connected {family}", partial(udp_through, node, version, connected=True))
        report.check("services", f"no backend {family}", partial(refused, node, version))
        report.check("policy", f"allowed {family}", partial(direct, node, version))
        for known, word in ((True, "lives"), (False, "is reset")):
            report.check("policy", f"lost by conntrack {word} {family}", partial(picked_up, node, version, known=known))
        if node.has(probe.OFFLOAD):
            kept = partial(picked_up, node, version, known=True, listens=False)
            report.check("policy", f"lost by conntrack, listener closed, lives {family}", kept)
        for pod, port, kind in (("other", 8080, socket.SOCK_STREAM), ("client", 8443, socket.SOCK_DGRAM)):
            report.check("policy", f"denied {pod} {port} {family}", partial(denied, node, pod, version, kind, port))
        report.check("policy", f"other's address {family}", partial(other_source, node, version))
        if node.has(probe.OFFLOAD):
            report.check("policy", f"unfinished checksum {family}", partial(unfinished_elsewhere, node, version))
        report.check("path", family, partial(took_path, node, version, redirect))


def took_path(node: Node, version: int, redirect: bool) -> None:
    """Check whether packets cross the bridge. One or two always do, because of neighbour discovery between the pods."""
    before = node.bridged()
    for _ in range(_TRIPS):
        udp_through(node, version)
    count = node.bridged() - before
    assert (count < _TRIPS) == redirect, f"{count} packets of {_TRIPS} datagrams crossed the bridge"


def differences(node: Node) -> list[dict[str, str]]:
    """Further features that this kernel lacks, which the probe does not cover, with the effect of each."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            without = "events of Service calls name the calling pod: without it, they do not (kernel 5.14 has it)"
            found.append({"feature": "socket option SO_NETNS_COOKIE", "without": without})
    if node.tables["nn_ipcache"].batched is False:
        without = "the agent reads tries quickly when it starts: without it, entry by entry (kernel 5.14 has it)"
        found.append({"feature": "batches of map type lpm_trie", "without": without})
    return found


def run(report: Report, objects: list[dict[str, Path]]) -> None:
    with report.timed("probe"):
        node = Node(report, objects)
        probe.require(node.features)
    with report.timed("pods"):
        node.add_pods()
    paths = [("bridge", False)]
    if node.has("helper redirect_peer"):
        paths.insert(0, ("redirect_peer", True))
    for name, redirect in paths:
        node.load(redirect)
        if "packets" not in report.checks:
            with report.timed("packets"):
                check_packets(node.programs, node.tables, report.check, redirect_peer=redirect)
            node.fill()
        with report.timed("end to end"):
            node.drops()
            check_path(node, report, name, redirect)
    report.missing += differences(node)


def main() -> int:
    report = Report(release=os.uname().release)
    started = time.monotonic()
    try:
        run(report, [{program: Path(path) for program, path in each.items()} for each in json.loads(sys.argv[1])])
    except (OSError, NodenetError, AssertionError) as error:
        report.error = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    report.seconds["all"] = round(time.monotonic() - started, 3)
    json.dump(asdict(report), sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
