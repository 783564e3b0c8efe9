"""The workload `packets`: ns of each packet of a Service's flow in the programs, by BPF_PROG_TEST_RUN.

The maps are filled by the agent's engine from objects of the API. For each path a flow is opened from a new port: its
first packet, one of the open connection, and its answer pass the programs in the order of the kernel. The figure of a
packet is the sum over these programs. Only the programs' own time counts, not the stack between them; a run of one
packet includes the cost of reading the clock (compare with `direct`).

    direct             pod to pod on another node, no Service
    cluster-ip         a pod calls a ClusterIP packet by packet, five backends on another node
    sticky             the same with session affinity
    node-port-local    from outside to a backend on this node, the source is kept
    node-port-snat     from outside to a backend on another node, the source is replaced
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from nodenet.agent.datapath import netns_cookie
from nodenet.agent.features import features
from nodenet.bpf import build, loader, probe
from nodenet.bpf.grace import ProgramsGrace
from nodenet.bpf.packet_run import TC_ACT_SHOT, run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.compile import LocalNode
from nodenet.engine import Engine
from nodenet.errors import CannotRunError
from nodenet.model import (
    Endpoint,
    EndpointSlice,
    IPNetwork,
    Namespace,
    Node,
    ObjectRef,
    Pod,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from nodenet.store import listings
from nodenet.tables import KEYED
from perf.blocks import Sizes
from perf.ebpf import NODE, policies
from perf.kernel_packets import ends, frame, tcp
from perf.node import own_mounts
from perf.results import Result
from perf.services import NAMESPACE, TARGET_PORT

BACKENDS = 5
PORT, NODE_PORTS = 80, {"local": 30080, "snat": 30081}
PACKETS = ("first", "established", "answer")
_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
_LOOPBACK = 1
_FIRST_PORT, _PORTS = 1024, 28000
_EGRESS, _INGRESS = "endpoint_egress", "endpoint_ingress"
_ENTER, _LEAVE = "netdev_ingress", "netdev_egress"


class Addresses(NamedTuple):
    pod: str
    near: str
    far: tuple[str, ...]
    client: str
    node: str
    cluster_ip: str
    sticky: str


ADDRESSES = {
    4: Addresses(
        *("10.201.0.1", "10.201.0.2", tuple(f"10.202.0.{n}" for n in range(2, 2 + BACKENDS)), "203.0.113.9"),
        *("192.0.2.1", "10.96.0.10", "10.96.0.11"),
    ),
    6: Addresses(
        *("fd01::1", "fd01::2", tuple(f"fd02::{n}" for n in range(2, 2 + BACKENDS)), "2001:db8:9::9"),
        *("2001:db8::1", "fd96::10", "fd96::11"),
    ),
}


@dataclass(frozen=True, slots=True)
class Way:
    """A flow: who calls which address, and the programs that its packets and its answers pass."""

    name: str
    family: int
    client: str
    address: str
    port: int
    there: tuple[str, ...]
    back: tuple[str, ...]

    @property
    def metric(self) -> str:
        return self.name + ("-ipv6" if self.family == 6 else "")


def ways() -> Iterator[Way]:
    for family, at in ADDRESSES.items():
        yield Way("direct", family, at.pod, at.far[0], TARGET_PORT, (_EGRESS,), (_INGRESS,))
        yield Way("cluster-ip", family, at.pod, at.cluster_ip, PORT, (_EGRESS,), (_INGRESS,))
        yield Way("sticky", family, at.pod, at.sticky, PORT, (_EGRESS,), (_INGRESS,))
        yield Way("node-port-local", family, at.client, at.node, NODE_PORTS["local"], (_ENTER,), (_LEAVE,))
        both = (_ENTER, _LEAVE)
        yield Way("node-port-snat", family, at.client, at.node, NODE_PORTS["snat"], both, both)


def run(sizes: Sizes, cache: Path, progress: Callable[[str], None]) -> list[Result]:
    """Measure all packets. Raises CannotRunError if a program drops one of them."""
    with own_mounts() as folder, ExitStack() as stack:
        programs = _programs(stack, folder / "bpf" / "packets", cache)
        samples: dict[tuple[Way, str], list[list[float]]] = {(w, p): [] for w in ways() for p in PACKETS}
        ports = iter(range(1 << 40))
        for number in range(max(sizes.rounds, 2)):
            progress(f"packets: round {number + 1} of {max(sizes.rounds, 2)}")
            for way in ways():
                taken = [_flow(programs, way, _FIRST_PORT + next(ports) % _PORTS) for _ in range(sizes.count)]
                for index, packet in enumerate(PACKETS):
                    samples[way, packet].append([float(durations[index]) for durations in taken])
    return [
        Result(
            "ebpf",
            "packets",
            0,
            f"{way.metric} {packet}",
            "ns",
            tuple(value for block in blocks for value in block),
            tuple(map(statistics.median, blocks)),
        )
        for (way, packet), blocks in samples.items()
    ]


def _flow(programs: Mapping[str, int], way: Way, port: int) -> tuple[int, int, int]:
    """Open a flow. Returns the ns of its first packet, of a later one, and of an answer."""
    opened = _pass(programs, way, way.there, _frame(way.client, way.address, port, way.port, _SYN))
    source, backend, source_port, backend_port = ends(opened.packet)
    answer = _pass(programs, way, way.back, _frame(backend, source, backend_port, source_port, _SYN_ACK))
    back = ends(answer.packet)
    if back != (way.address, way.client, way.port, port):
        raise CannotRunError(f"packets: {way.metric}: the answer came from {back}")
    later = _pass(programs, way, way.there, _frame(way.client, way.address, port, way.port, _ACK))
    return opened.ns, later.ns, answer.ns


class _Passed(NamedTuple):
    packet: bytes
    ns: int


def _pass(programs: Mapping[str, int], way: Way, names: tuple[str, ...], packet: bytes) -> _Passed:
    total = 0
    for name in names:
        found = run_packet(programs[name], packet, ingress_ifindex=_LOOPBACK if name == _LEAVE else 0)
        if found.verdict == TC_ACT_SHOT:
            raise CannotRunError(f"packets: {way.metric}: {name} dropped {ends(packet)}")
        packet, total = found.packet, total + found.duration
    return _Passed(packet, total)


def _frame(source: str, target: str, sport: int, dport: int, flags: int) -> bytes:
    """From the pod's MAC to the loopback's, on which BPF_PROG_TEST_RUN runs."""
    return bytes(6) + frame(source, target, 6, tcp(sport, dport, flags))[6:]


def _programs(stack: ExitStack, folder: Path, cache: Path) -> Mapping[str, int]:
    """Load the programs and fill their maps."""
    found = features()
    probe.require(found)
    config = loader.DatapathConfig(
        refuse_errno=probe.available(found, "helper set_retval"),
        trace_events=False,
        kernel_structs=probe.available(found, probe.OFFLOAD),
        netns_cookie=netns_cookie(),
        serve_uplinks=True,
    )
    pins = Pins(folder)
    pins.make()
    loaded = loader.load(build.build_all(cache, probe.available(found, probe.CAST_CTX)), config, pins)
    tables = {name: BpfTable(name, pins.map(name)) for name in KEYED}
    for table in tables.values():
        stack.callback(table.close)
    own = frozenset(ip_address(at.node) for at in ADDRESSES.values())
    engine = Engine(LocalNode(NODE, own, True), tables, ProgramsGrace())
    engine.feed(*listings(_objects()))
    engine.run_once()
    return loaded.programs


def _objects() -> list[object]:
    nodes = (
        Node(NODE, tuple(ip_address(at.node) for at in ADDRESSES.values()), _networks("10.201.0.0/24", "fd01::/64")),
        Node("other", (ip_address("192.0.2.2"),), _networks("10.202.0.0/24", "fd02::/64")),
    )
    found: list[object] = [Namespace(NAMESPACE, {}), *nodes, *policies(0)]
    for number, (name, role) in enumerate((("pod", "client"), ("near", "server")), 1):
        ips = tuple(ip_address(getattr(at, name)) for at in ADDRESSES.values())
        ref = ObjectRef(NAMESPACE, name)
        found.append(Pod(ref, name, {"role": role}, NODE, ips, phase="Running"))
        # Both on the loopback, where only the first one sends.
        mac = f"02:00:00:00:00:0{number}"
        found.append(Endpoint(number, name, "eth0", "", "lo", _LOOPBACK, mac, ips, ref, name))
    for index in range(BACKENDS):
        ips = tuple(ip_address(at.far[index]) for at in ADDRESSES.values())
        ref = ObjectRef(NAMESPACE, f"far{index}")
        found.append(Pod(ref, ref.name, {"role": "server"}, "other", ips, phase="Running"))
    far = {version: at.far for version, at in ADDRESSES.items()}
    near = {version: (at.near,) for version, at in ADDRESSES.items()}
    found += _service("web", far, [at.cluster_ip for at in ADDRESSES.values()])
    found += _service("sticky", far, [at.sticky for at in ADDRESSES.values()], affinity_seconds=10800)
    found += _service("local", near, ["10.96.0.12", "fd96::12"], NODE_PORTS["local"], external_local=True)
    found += _service("snat", far, ["10.96.0.13", "fd96::13"], NODE_PORTS["snat"])
    return found


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(map(ip_network, texts))


def _service(
    name: str, backends: Mapping[int, tuple[str, ...]], ips: list[str], node_port: int = 0, **fields: object
) -> Iterator[object]:
    ref = ObjectRef(NAMESPACE, name)
    kind = ServiceType.NODE_PORT if node_port else ServiceType.CLUSTER_IP
    port = ServicePort("http", Protocol.TCP, PORT, node_port)
    yield Service(ref, kind, tuple(map(ip_address, ips)), (port,), **fields)  # type: ignore[arg-type]
    target = (ServicePort("http", Protocol.TCP, TARGET_PORT),)
    for version, addresses in backends.items():
        node = NODE if name == "local" else "other"
        made = tuple(SliceEndpoint((ip_address(address),), node_name=node) for address in addresses)
        yield EndpointSlice(ObjectRef(NAMESPACE, f"{name}-{version}"), ref, target, made)
