"""The eBPF mode: the agent's own programs, maps and engine, with policy, conntrack and events on."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar

from netpolicy.types import Direction as PolicyDirection
from netpolicy.types import IPBlock, NetworkPolicy, Operator, Peer, PortRule, Requirement, Rule, Selector
from netpolicy.types import Protocol as PolicyProtocol
from nodenet import kinds
from nodenet.agent import attachment
from nodenet.agent.datapath import Datapath
from nodenet.bpf import loader
from nodenet.compile import LocalNode
from nodenet.config import Config, Share
from nodenet.engine import Engine
from nodenet.errors import CannotRunError
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.kubeproxy.model import Service
from nodenet.link import netns
from nodenet.link.handle import Link
from nodenet.model import (
    Endpoint,
    EndpointSlice,
    Namespace,
    Node,
    ObjectRef,
    Pod,
    Protocol,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from nodenet.model import Service as ApiService
from nodenet.store import Delta, Listing, Op, StoreEvent, listings
from perf.modes import Mode
from perf.node import GATEWAY
from perf.services import NAMESPACE, TARGET_PORT, ServiceModel
from perf.tools import Cost

NODE = "bench"
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP}
# Seconds that a sync may take before the run gives up.
_LIMIT = 600.0


class _Datapath(Datapath):
    """The agent's datapath, with an option to switch off events of forwarded packets."""

    def __init__(self, config: Config, trace_events: bool) -> None:
        self._trace_events = trace_events
        super().__init__(config)

    def _settings(self) -> loader.DatapathConfig:
        return replace(super()._settings(), trace_events=self._trace_events)


class Ebpf(Mode):
    """`surroundings` (folder with a BPF file system in bpf/, cgroup, cache, Services at most) is set by the run."""

    name = "ebpf"
    trace_events: ClassVar[bool] = True
    # True: Services are translated at the socket. False: packet by packet, at the pod's interface.
    at_socket: ClassVar[bool] = True
    surroundings: ClassVar[tuple[Path, Path, Path, int]]

    def _prepare(self, stack: ExitStack) -> None:
        folder, cgroup, cache, entries = self.surroundings
        self._cgroup = cgroup / self.name
        self._cgroup.mkdir()
        config = Config(
            NODE,
            bpffs=folder / "bpf" / self.name,
            cgroup=self._cgroup,
            cache_dir=cache,
            map_memory=Share(0),
            service_entries=entries,
            backend_entries=entries,
        )
        self._datapath = _Datapath(config, self.trace_events)
        stack.callback(self._datapath.close)
        self._control = stack.enter_context(_Control(self._datapath))
        self._control.change(*self._fixed_objects())
        self._attach()
        if self.at_socket:
            self._datapath.attach_sockets()
        if self.trace_events:
            stack.enter_context(_Listener(self._datapath))

    @property
    def cgroup(self) -> Path | None:
        return self._cgroup

    def _attach(self) -> None:
        def attach() -> None:
            with Link() as link:
                for pod in self.node.pods.values():
                    attachment.attach_new(link, pod.index, self._datapath.loaded.programs)

        netns.call(self.node.netns, attach)

    def _fixed_objects(self) -> list[Listing]:
        pods, endpoints = [], []
        for number, pod in enumerate(self.node.pods.values(), 1):
            ref, ips = ObjectRef(NAMESPACE, pod.name), tuple(map(ip_address, pod.ips))
            role = "client" if pod.name == "client" else "server"
            pods.append(Pod(ref, pod.name, {"role": role}, NODE, ips, phase="Running"))
            netns = f"/run/netns/{pod.netns}"
            endpoints.append(
                Endpoint(number, pod.name, "eth0", netns, pod.host_ifname, pod.index, pod.mac, ips, ref, pod.name)
            )
        namespace, node = (
            Namespace(NAMESPACE, {}),
            Node(NODE, (IPv4Address("10.0.0.1"),), (ip_network("10.244.1.0/24"),)),
        )
        return listings([*pods, *endpoints, namespace, node, *policies(0)])

    def _writer(self, model: ServiceModel) -> Callable[[], Cost]:
        """Feeds the changed objects to the engine. The cost includes the time of Python, with compilation."""
        before, after = group(self.model.services), group(model.services)
        changed = [services for name, services in after.items() if before.get(name) != services]
        gone = [services for name, services in before.items() if name not in after]
        events = [Delta(Op.MODIFIED, obj) for services in changed for obj in api_objects(services)]
        events += [Delta(Op.DELETED, obj) for services in gone for obj in api_objects(services)]
        return partial(self._control.change, *events)

    def settle(self) -> None:
        self._control.settle()

    def set_policy_rules(self, count: int) -> Cost:
        """Add `count` rules to the few that always exist."""
        return self._control.change(Listing(kinds.NETWORK_POLICY, tuple(policies(count))))

    def clear(self) -> None:
        self._control.change(Listing(kinds.SERVICE, ()), Listing(kinds.ENDPOINT_SLICE, ()))
        self.model = ServiceModel()

    def flush(self) -> None:
        for name in ("nn_ct", "nn_nat"):
            table = self._datapath.tables[name]
            for key in [key for key, _ in table.items()]:
                table.delete(key)

    def version(self) -> str:
        return f"datapath {self._datapath.loaded.key}"

    def kernel_bytes(self) -> int | None:
        """The memory that the kernel accounts to all maps, whether empty or full (memlock in fdinfo)."""
        return sum(_memlock(table.fd) for table in self._datapath.tables.values())


class EbpfPacket(Ebpf):
    """Like Ebpf, for pods whose sockets the socket programs do not see (Kata, gVisor): every packet to a Service is
    translated."""

    name = "ebpf-packet"
    at_socket = False


class EbpfQuiet(Ebpf):
    """Like Ebpf, without events of forwarded packets. The difference is the cost of observability."""

    name = "ebpf-quiet"
    trace_events = False


def _memlock(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def group(services: Iterable[Service]) -> dict[str, tuple[Service, ...]]:
    """Group ports by their Service."""
    found: dict[str, tuple[Service, ...]] = {}
    for service in services:
        found[service.name] = (*found.get(service.name, ()), service)
    return found


def api_objects(ports: tuple[Service, ...]) -> tuple[ApiService, EndpointSlice]:
    """A Service and its only EndpointSlice, as objects of the API."""
    first = ports[0]
    ref = ObjectRef(first.namespace, first.name)
    service = ApiService(
        ref,
        ServiceType.CLUSTER_IP,
        (IPv4Address(first.cluster_ip),),
        tuple(ServicePort(port.port_name, _PROTOCOLS[port.protocol], port.port) for port in ports),
    )
    endpoints = tuple(SliceEndpoint((IPv4Address(backend.address),)) for backend in first.backends)
    targets = tuple(ServicePort(port.port_name, _PROTOCOLS[port.protocol], TARGET_PORT) for port in ports)
    return service, EndpointSlice(ObjectRef(first.namespace, f"{first.name}-1"), ref, targets, endpoints)


def policies(extra: int) -> list[NetworkPolicy]:
    """Policies that isolate client and server in the directions of the measured traffic, and allow it.

    `extra`: number of further rules, each with an unused address and its own port.
    """

    def role(name: str) -> Selector:
        return Selector((Requirement("role", Operator.IN, (name,)),))

    ports = (PortRule(PolicyProtocol.TCP, TARGET_PORT), PortRule(PolicyProtocol.UDP, TARGET_PORT))
    further = tuple(
        Rule(
            (Peer(block=IPBlock(ip_network((int(IPv4Address("198.18.0.0")) + number, 32)))),),
            (PortRule(PolicyProtocol.TCP, 1 + number % 60000),),
        )
        for number in range(extra)
    )
    egress, ingress = PolicyDirection.EGRESS, PolicyDirection.INGRESS
    return [
        NetworkPolicy(
            NAMESPACE,
            "client",
            role("client"),
            frozenset({egress}),
            egress=(*further, Rule((Peer(pods=role("server")),), ports)),
        ),
        NetworkPolicy(
            NAMESPACE,
            "server",
            role("server"),
            frozenset({ingress}),
            ingress=(*further, Rule((Peer(pods=role("client")),), ports)),
        ),
    ]


class _Control:
    """The engine of an agent, in a thread with an event loop of its own."""

    def __init__(self, datapath: Datapath) -> None:
        local = LocalNode(NODE, frozenset({IPv4Address(GATEWAY), IPv4Address("10.0.0.1")}), True)
        self._engine = Engine(local, datapath.tables, datapath.grace, resync_seconds=1e9)
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._events.run_forever, name="control", daemon=True)
        self._task: Any = None

    def __enter__(self) -> _Control:
        self._thread.start()
        self._task = asyncio.run_coroutine_threadsafe(self._engine.run(), self._events)
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._events).result(_LIMIT)
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join(_LIMIT)

    def change(self, *events: StoreEvent) -> Cost:
        """Feed the engine and wait until everything is in the kernel. Raises CannotRunError with the loop's error."""

        async def once() -> None:
            self._engine.feed(*events)
            await self._engine.in_force()
            if self._engine.stats.failing:
                raise CannotRunError(f"the maps could not be written: {self._engine.stats.last_error}")

        started, cpu = time.perf_counter(), time.process_time()
        asyncio.run_coroutine_threadsafe(once(), self._events).result(_LIMIT)
        return Cost(time.perf_counter() - started, time.process_time() - cpu)

    def settle(self) -> None:
        """Wait for the rest of the loop, which lasts as long as the run took, at most one second."""
        time.sleep(min(1.0, self._engine.stats.last_duration) + 0.01)


class _Listener:
    """Reads events from the ring buffer all the time, like the agent. With a full buffer the datapath would appear
    faster than it is."""

    def __init__(self, datapath: Datapath) -> None:
        self._pipeline = Pipeline(Ring(4095), time.time_ns() - time.monotonic_ns())
        self._reader = datapath.read_events(self._pipeline.receive)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._reader.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._reader.fd, select.POLLIN)
        while not self._stop.is_set():
            if poll.poll(200):
                while self._reader.consume() and not self._stop.is_set():
                    pass
