"""Prometheus metrics, collected at each scrape. server.py serves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nodenet.abi import LOST_EVENTS, DropReason, EntryEnd, FairTable, MetricsEntry, MetricsKey
from nodenet.metrics.histogram import Buckets
from nodenet.metrics.kubeproxy import ProxyMetrics, ProxySample
from nodenet.model import Direction

_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Multicast on its way into a pod (nn_not_for_pod). On its way out of a pod it is a drop: a query that only a router
# may send.
_FLOODED = MetricsKey(int(DropReason.MULTICAST_HANDLED), int(Direction.INGRESS))
_CNI_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@dataclass(frozen=True, slots=True)
class MapUsage:
    """Entries in use and capacity of one BPF map. `fills`: a full one is trouble. Not so for an array, which is always
    full, and for a map that evicts what was used longest ago."""

    entries: int
    size: int
    fills: bool = True


@dataclass(frozen=True, slots=True)
class WatchCount:
    """Statistics of one watch of the Kubernetes API. `events`, `lists` and `errors` count since the start. `unread`:
    the number of existing objects with unreadable parts. `age`: seconds since the server's last byte (None before the
    first). `installed`: whether the API serves the kind."""

    events: int = 0
    lists: int = 0
    errors: int = 0
    unread: int = 0
    age: float | None = None
    installed: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """All values of one scrape. Counters start with the agent; those in `datapath` start when the maps were created.

    `objects`: the number of objects by kind (pods, slices, endpoints, identities and so on). `flows_lost`: the number
    by the place where they were lost.
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
    # The number of writes by map.
    writes: Mapping[str, int] = field(default_factory=dict)
    # (pod, "answered" or "unanswered") -> entries of nn_ct, as last counted.
    connections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    connections_expired: int = 0
    # Connected UDP sockets that were closed because their backend left the Service.
    sockets_ended: int = 0
    # Things that another program removed or changed and the agent restored: the number by what it was.
    repairs: Mapping[str, int] = field(default_factory=dict)
    # Seconds since the epoch; 0: not yet.
    last_sync: float = 0.0
    watches: Mapping[str, WatchCount] = field(default_factory=dict)
    # None: Services are not this agent's.
    proxy: ProxySample | None = None


class Source(Protocol):
    """Implemented by the agent. `sample` is called in a worker thread and may read maps; the other methods must be
    fast."""

    def sample(self) -> Sample:
        """All current values."""
        ...

    def proxy_sample(self) -> ProxySample | None:
        """What the metrics of kube-proxy need. None: Services are not this agent's. Reads no map."""
        ...

    def missing(self) -> list[str]:
        """What is missing until the programs are attached and the first synchronisation of endpoints and Services is
        done: one sentence each. Empty after that."""
        ...


class Metrics(Collector):
    """The agent's Prometheus metrics. Each scrape takes a Sample from the source. Only durations, and `proxy`, are
    recorded between scrapes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # kube-proxy's metrics.
        self.proxy = ProxyMetrics()
        self._runs = {failed: Buckets(_RECONCILE_BUCKETS) for failed in (False, True)}
        # By verb, and whether the call failed.
        self._cni: dict[tuple[str, bool], Buckets] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._kube_proxy = CollectorRegistry()
        ProcessCollector(registry=self._kube_proxy)
        self._kube_proxy.register(_Proxy(source, self.proxy))

    def reconciled(self, seconds: float, failed: bool) -> None:
        """Record one run of the reconcile loop."""
        self._runs[failed].observe(seconds)

    def cni_operation(self, verb: str, seconds: float, failed: bool) -> None:
        """Record one CNI call: ADD, DEL, ..."""
        key = verb, failed
        if key not in self._cni:
            self._cni[key] = Buckets(_CNI_BUCKETS)
        self._cni[key].observe(seconds)

    def describe(self) -> list[Metric]:
        """Prometheus calls this at registration. It returns nothing, because the source may not be ready yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        sample = self._source.sample()
        yield from self._durations()
        yield from _agent(sample)
        yield from _datapath(sample)
        yield from _maps(sample)
        yield from _connections(sample)
        yield _ended(sample)
        yield from _flows(sample)
        yield from _reconcile(sample)
        yield from _watches(sample)
        yield _counter(
            "nodenet_service_sockets_ended",
            "Connected UDP sockets that were closed because their backend left the Service.",
            {(): sample.sockets_ended},
        )
        yield _counter(
            "nodenet_repairs",
            "Programs, bridge ports, pins and map entries that another program changed, and the agent restored.",
            sample.repairs,
            "what",
        )

        if sample.proxy is not None:
            yield from self.proxy.families(sample.proxy)

    def _durations(self) -> Iterator[Metric]:
        runs = HistogramMetricFamily(
            "nodenet_reconcile_duration_seconds", "From snapshot to the last map write.", labels=["result"]
        )
        for failed, buckets in self._runs.items():
            buckets.add_to(runs, _result(failed))
        yield runs
        calls = HistogramMetricFamily(
            "nodenet_cni_operation_duration_seconds",
            "CNI operations in which the agent took part.",
            labels=["verb", "result"],
        )
        for (verb, failed), buckets in self._cni.copy().items():
            buckets.add_to(calls, verb, _result(failed))
        yield calls

    def text(self) -> bytes:
        """The metrics in the exposition format. Call it in a worker thread: it calls the source."""
        return generate_latest(self.registry)

    def proxy_text(self) -> bytes:
        """Only those of kube-proxy and of the process. It reads no map."""
        return generate_latest(self._kube_proxy)


class _Proxy(Collector):
    """kube-proxy's metrics without the others, for the port on which kube-proxy serves them."""

    def __init__(self, source: Source, metrics: ProxyMetrics) -> None:
        self._source = source
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """As Metrics.describe."""
        return []

    def collect(self) -> Iterator[Metric]:
        sample = self._source.proxy_sample()
        if sample is not None:
            yield from self._metrics.families(sample)


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
    yield _gauge("nodenet_healthy", "1 if the agent works.", {(): sample.healthy})
    yield _gauge(
        "nodenet_ready", "1 if programs are attached and endpoints and Services are synchronised.", {(): sample.ready}
    )
    yield _gauge("nodenet_objects", "Number of objects by kind.", sample.objects, "kind")


def _datapath(sample: Sample) -> Iterator[Metric]:
    packets = {k: v for k, v in sample.datapath.items() if k.direction}
    forwarded = {k: v for k, v in packets.items() if k.reason == 0}
    flooded = packets.pop(_FLOODED, MetricsEntry(0, 0))
    dropped = {k: v for k, v in packets.items() if k.reason not in (0, LOST_EVENTS)}
    for unit, attribute in (("packets", "packets"), ("bytes", "octets")):
        yield _counter(
            f"nodenet_forwarded_{unit}",
            f"{unit.capitalize()} forwarded between pods and their peers.",
            {_direction(k.direction): getattr(v, attribute) for k, v in forwarded.items()},
            "direction",
        )
        yield _counter(
            f"nodenet_dropped_{unit}",
            f"{unit.capitalize()} dropped; refused socket calls count as packets.",
            {(_direction(k.direction), _reason(k.reason)): getattr(v, attribute) for k, v in dropped.items()},
            "direction",
            "reason",
        )
        yield _counter(
            f"nodenet_flooded_{unit}",
            f"{unit.capitalize()} of multicast that a bridge sent to every port. They end at the pod's interface: no "
            "drop by policy.",
            {(): getattr(flooded, attribute)},
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
        "Fraction of a BPF map that is in use, 0-1. Only of maps for which being full is trouble.",
        {n: m.entries / m.size if m.size else 0.0 for n, m in sample.maps.items() if m.fills},
        "map",
    )


def _connections(sample: Sample) -> Iterator[Metric]:
    yield _gauge(
        "nodenet_connections",
        "Live entries of the connection table (nn_ct) by pod, as last counted.",
        sample.connections,
        "pod",
        "state",
    )
    yield _counter(
        "nodenet_connections_expired",
        "Expired entries that the agent deleted from the connection table.",
        {(): sample.connections_expired},
    )


def _ended(sample: Sample) -> Metric:
    ended = {key: sample.datapath.get(MetricsKey.ended(*key)) for key in product(FairTable, EntryEnd)}
    return _counter(
        "nodenet_table_entries_ended",
        "Entries of shared tables that the programs removed (expired, evicted: live), or found no room for (refused).",
        {
            (f"nn_{table.name.lower()}", end.name.lower()): counted.packets
            for (table, end), counted in ended.items()
            if counted is not None
        },
        "table",
        "reason",
    )


def _flows(sample: Sample) -> Iterator[Metric]:
    yield _counter("nodenet_flows_seen", "Flows received from the datapath.", {(): sample.flows_seen})
    kernel = sum(v.packets for k, v in sample.datapath.items() if k.reason == LOST_EVENTS)
    lost = {"kernel": kernel, **sample.flows_lost}
    yield _counter("nodenet_flows_lost", "Lost flows, by place.", lost, "where")


def _reconcile(sample: Sample) -> Iterator[Metric]:
    yield _counter("nodenet_reconcile_runs", "Runs of the reconcile loop.", {(): sample.reconcile_runs})
    yield _counter("nodenet_reconcile_errors", "Runs that failed and were retried.", {(): sample.reconcile_errors})
    yield _counter("nodenet_map_writes", "Entries written to or deleted from a BPF map.", sample.writes, "map")
    yield _gauge(
        "nodenet_reconcile_last_success_timestamp_seconds",
        "Time at which the maps last had the desired contents.",
        {(): sample.last_sync},
    )


def _watches(sample: Sample) -> Iterator[Metric]:
    for name, text in (
        ("events", "Changes received from watches of the Kubernetes API."),
        ("lists", "Full lists fetched from the Kubernetes API."),
        ("errors", "Failed watches of the Kubernetes API, and objects that could not be read."),
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
        "Seconds since the Kubernetes API last sent data on a watch; a working watch receives a bookmark every minute.",
        {kind: count.age for kind, count in sample.watches.items() if count.age is not None},
        "kind",
    )
    yield _gauge(
        "nodenet_api_kind_installed",
        "1: the API serves the kind. 0: its CustomResourceDefinition is not installed.",
        {kind: count.installed for kind, count in sample.watches.items()},
        "kind",
    )


def _result(failed: bool) -> str:
    return "error" if failed else "success"


def _direction(number: int) -> str:
    return Direction(number).name if number in (1, 2) else "UNKNOWN"


def _reason(number: int) -> str:
    try:
        return DropReason(number).name
    except ValueError:
        return str(number)
