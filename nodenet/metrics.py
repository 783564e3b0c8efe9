"""Prometheus metrics, read when they are scraped, and the small HTTP server for them and for the health checks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from nodenet.abi import LOST_EVENTS, DropReason, MetricsEntry, MetricsKey
from nodenet.errors import CannotRunError
from nodenet.model import Direction

# After so long a connection without a request is closed.
IDLE_SECONDS = 15.0
_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_CNI_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@dataclass(frozen=True, slots=True)
class MapUsage:
    """How full one BPF map is, in entries."""

    entries: int
    size: int


@dataclass(frozen=True, slots=True)
class WatchCount:
    """What one watch of the Kubernetes API has brought since the start; how many objects of now have parts that could
    not be read; the age of the server's last byte in seconds (None before the first); and whether the API serves the
    kind."""

    events: int = 0
    lists: int = 0
    errors: int = 0
    unread: int = 0
    age: float | None = None
    installed: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything that is read at a scrape. Counters count since the agent started, `datapath` since the maps were made.

    `objects`: how many of each kind there are (pods, slices, endpoints, identities and so on). `flows_lost`: where
    they were lost -> how many.
    """

    node: str
    version: str
    healthy: bool
    ready: bool
    datapath: Mapping[MetricsKey, MetricsEntry] = field(default_factory=dict)
    maps: Mapping[str, MapUsage] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    flows_seen: int = 0
    flows_lost: Mapping[str, int] = field(default_factory=dict)
    reconcile_runs: int = 0
    reconcile_errors: int = 0
    # Map -> writes.
    writes: Mapping[str, int] = field(default_factory=dict)
    # Connected UDP sockets whose backend left their Service.
    sockets_ended: int = 0
    # What somebody else took away and the agent put back -> how many.
    repairs: Mapping[str, int] = field(default_factory=dict)
    # Seconds since the epoch; 0: never yet.
    last_sync: float = 0.0
    watches: Mapping[str, WatchCount] = field(default_factory=dict)


class Source(Protocol):
    """What the agent tells. `sample` is called in a worker thread and may read maps; the others must be quick."""

    def sample(self) -> Sample:
        """Everything as it is now."""
        ...

    def healthy(self) -> bool:
        """Whether the agent does its work."""
        ...

    def ready(self) -> bool:
        """Whether endpoints and Services are in force: programs attached and a first synchronisation done."""
        ...


class Metrics(Collector):
    """The collector, and the two histograms that the agent feeds as things happen."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "nodenet_reconcile_duration_seconds",
            "From snapshot to the last map write.",
            ["result"],
            buckets=_RECONCILE_BUCKETS,
            registry=self.registry,
        )
        self.cni_seconds = Histogram(
            "nodenet_cni_operation_duration_seconds",
            "CNI verbs that the agent took part in.",
            ["verb", "result"],
            buckets=_CNI_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self)

    def reconciled(self, seconds: float, failed: bool) -> None:
        """One run of the reconcile loop."""
        self.reconcile_seconds.labels("error" if failed else "success").observe(seconds)

    def cni_operation(self, verb: str, seconds: float, failed: bool) -> None:
        """One CNI call: ADD, DEL, ..."""
        self.cni_seconds.labels(verb, "error" if failed else "success").observe(seconds)

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration: the source may not be ready to be read."""
        return []

    def collect(self) -> Iterator[Metric]:
        sample = self._source.sample()
        yield from _agent(sample)
        yield from _datapath(sample)
        yield from _maps(sample)
        yield from _flows(sample)
        yield from _reconcile(sample)
        yield from _watches(sample)
        yield _counter(
            "nodenet_service_sockets_ended",
            "Connected UDP sockets that were ended because their backend left the Service.",
            {(): sample.sockets_ended},
        )
        yield _counter(
            "nodenet_repairs",
            "Programs, pins and map entries that were gone or changed by somebody else, and were put back.",
            sample.repairs,
            "what",
        )

    def text(self) -> bytes:
        """The exposition format. Calls the source: use a worker thread."""
        return generate_latest(self.registry)


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(
            [str(part) for part in key] if isinstance(key, tuple) else [str(key)] if labels else [], value
        )
    return family


def _counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(
            [str(part) for part in key] if isinstance(key, tuple) else [str(key)] if labels else [], value
        )
    return family


def _agent(sample: Sample) -> Iterator[Metric]:
    yield _gauge("nodenet_build_info", "The agent's version.", {(sample.version, sample.node): 1}, "version", "node")
    yield _gauge("nodenet_healthy", "1 when the agent does its work.", {(): sample.healthy})
    yield _gauge("nodenet_ready", "1 when endpoints and Services are in force.", {(): sample.ready})
    yield _gauge("nodenet_objects", "Objects that the agent knows.", sample.objects, "kind")


def _datapath(sample: Sample) -> Iterator[Metric]:
    forwarded = {k: v for k, v in sample.datapath.items() if k.reason == 0}
    dropped = {k: v for k, v in sample.datapath.items() if k.reason not in (0, LOST_EVENTS)}
    for unit, attribute in (("packets", "packets"), ("bytes", "octets")):
        yield _counter(
            f"nodenet_forwarded_{unit}",
            f"{unit.capitalize()} let through between pods and their peers.",
            {_direction(k.direction): getattr(v, attribute) for k, v in forwarded.items()},
            "direction",
        )
        yield _counter(
            f"nodenet_dropped_{unit}",
            f"{unit.capitalize()} dropped; socket calls that were refused count as packets.",
            {(_direction(k.direction), _reason(k.reason)): getattr(v, attribute) for k, v in dropped.items()},
            "direction",
            "reason",
        )


def _maps(sample: Sample) -> Iterator[Metric]:
    yield _gauge("nodenet_map_entries", "Entries in a BPF map.", {n: m.entries for n, m in sample.maps.items()}, "map")
    yield _gauge(
        "nodenet_map_max_entries",
        "Entries that a BPF map can hold.",
        {n: m.size for n, m in sample.maps.items()},
        "map",
    )
    yield _gauge(
        "nodenet_map_pressure",
        "Part of a BPF map that is in use, 0-1.",
        {n: m.entries / m.size if m.size else 0.0 for n, m in sample.maps.items()},
        "map",
    )


def _flows(sample: Sample) -> Iterator[Metric]:
    yield _counter("nodenet_flows_seen", "Flows that came from the datapath.", {(): sample.flows_seen})
    kernel = sum(v.packets for k, v in sample.datapath.items() if k.reason == LOST_EVENTS)
    lost = {"kernel": kernel, **sample.flows_lost}
    yield _counter("nodenet_flows_lost", "Flows that were lost, by where.", lost, "where")


def _reconcile(sample: Sample) -> Iterator[Metric]:
    yield _counter("nodenet_reconcile_runs", "Runs of the reconcile loop.", {(): sample.reconcile_runs})
    yield _counter("nodenet_reconcile_errors", "Runs that failed and were repeated.", {(): sample.reconcile_errors})
    yield _counter("nodenet_map_writes", "Entries written to or deleted from a BPF map.", sample.writes, "map")
    yield _gauge(
        "nodenet_reconcile_last_success_timestamp_seconds",
        "When the maps last held what is wanted.",
        {(): sample.last_sync},
    )


def _watches(sample: Sample) -> Iterator[Metric]:
    for name, text in (
        ("events", "Changes that watches of the Kubernetes API brought."),
        ("lists", "Full lists that were fetched from the Kubernetes API."),
        ("errors", "Watches of the Kubernetes API that broke, and objects that could not be read."),
    ):
        yield _counter(
            f"nodenet_api_watch_{name}", text, {kind: getattr(c, name) for kind, c in sample.watches.items()}, "kind"
        )
    yield _gauge(
        "nodenet_api_unread_objects",
        "Objects with parts that could not be read. A NetworkPolicy among them isolates and allows less.",
        {kind: count.unread for kind, count in sample.watches.items()},
        "kind",
    )
    yield _gauge(
        "nodenet_api_last_byte_age_seconds",
        "Since the Kubernetes API last sent anything on a watch; a living watch brings a bookmark about once a minute.",
        {kind: count.age for kind, count in sample.watches.items() if count.age is not None},
        "kind",
    )
    yield _gauge(
        "nodenet_api_kind_installed",
        "1: the API serves the kind. 0: its CustomResourceDefinition is not installed.",
        {kind: count.installed for kind, count in sample.watches.items()},
        "kind",
    )


def _direction(number: int) -> str:
    return Direction(number).name if number in (1, 2) else "UNKNOWN"


def _reason(number: int) -> str:
    try:
        return DropReason(number).name
    except ValueError:
        return str(number)


def app(metrics: Metrics, source: Source) -> web.Application:
    """/metrics, /healthz (the agent does its work), /readyz (endpoints and Services are in force)."""

    reading: asyncio.Task[bytes] | None = None

    async def show(_request: web.Request) -> web.Response:
        # A scrape counts the entries of every map: those who ask meanwhile get the same answer.
        nonlocal reading
        if reading is None or reading.done():
            reading = asyncio.create_task(asyncio.to_thread(metrics.text))
        body = await asyncio.shield(reading)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        return _answer(source.healthy(), "unhealthy")

    async def readyz(_request: web.Request) -> web.Response:
        return _answer(source.ready(), "not ready")

    found = web.Application()
    found.add_routes([web.get("/metrics", show), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return found


def _answer(well: bool, otherwise: str) -> web.Response:
    return web.Response(text="ok\n") if well else web.Response(text=f"{otherwise}\n", status=503)


class MetricsServer:
    """Serves `app` on one address until it is stopped."""

    def __init__(self, metrics: Metrics, source: Source) -> None:
        self._runner = web.AppRunner(app(metrics, source), access_log=None, keepalive_timeout=IDLE_SECONDS)

    async def start(self, address: str) -> int:
        """Listen on host:port (port 0: any free one). Returns the port. Raises CannotRunError when it is in use."""
        host, _, port = address.rpartition(":")
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise CannotRunError(
                f"metrics_address {address}: {error.strerror or error}", "set another, or an empty one to do without"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the socket and open connections."""
        await self._runner.cleanup()
