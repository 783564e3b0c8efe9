"""kube-proxy's metrics with kube-proxy's names, types and labels, for the alerts and dashboards that people have.

One run writes both IP families, so metrics with the label ip_family have the same value for each. The meaning of each
metric here: docs/metrics.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from nodenet.metrics.histogram import Buckets, exponential

FAMILIES = ("IPv4", "IPv6")
_SYNC = exponential(0.001, 2, 15)
# Quarters up to half a second, seconds up to a minute, then 5 s and 30 s steps up to five minutes.
_PROGRAMMING = (0.0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
_Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProxySample:
    """What one scrape reads. `endpoint_changes` and `service_changes`: (since the start, not yet in the maps).
    Times are seconds since the epoch; 0: not yet. `no_local`: the number of Service ports by (IP family, "internal" or
    "external"). `cut_off`: connected UDP sockets that were ended, by IP family."""

    endpoint_changes: tuple[int, int] = (0, 0)
    service_changes: tuple[int, int] = (0, 0)
    synced_at: float = 0.0
    queued_at: float = 0.0
    no_local: Mapping[tuple[str, str], int] = field(default_factory=dict)
    cut_off: Mapping[str, int] = field(default_factory=dict)


class ProxyMetrics:
    """Counts what happens between scrapes. Call `ran`, `programmed` and `answered` in the event loop."""

    def __init__(self) -> None:
        self._full = Buckets(_SYNC)
        self._partial = Buckets(_SYNC)
        self._programming = Buckets(_PROGRAMMING)
        # (path, status code) -> number of answers.
        self._answers: Counter[tuple[str, int]] = Counter()

    def ran(self, seconds: float, *, full: bool) -> None:
        """Record a run that brought Services into force. `full`: it read the maps and compared all entries."""
        (self._full if full else self._partial).observe(seconds)

    def programmed(self, seconds: float) -> None:
        """Record the time from the change of an EndpointSlice's pods until the maps had it."""
        self._programming.observe(seconds)

    def answered(self, path: str, status: int) -> None:
        """Record an answer of /healthz or /livez."""
        self._answers[path, status] += 1

    def families(self, sample: ProxySample) -> Iterator[Metric]:
        """All metrics."""
        both = self._full.plus(self._partial)
        yield from (
            _histogram("sync_proxy_rules_duration_seconds", "Duration of runs that brought Services into force.", both),
            _histogram(
                "sync_full_proxy_rules_duration_seconds",
                "Runs that read maps first: the first one, and after a failure or a foreign change.",
                self._full,
            ),
            _histogram(
                "sync_partial_proxy_rules_duration_seconds",
                "Runs that wrote the difference of a change.",
                self._partial,
            ),
            _histogram(
                "network_programming_duration_seconds",
                "From the change of a pod (annotation endpoints.kubernetes.io/last-change-trigger-time) to the maps.",
                self._programming,
            ),
        )
        yield from _changes("endpoint", "EndpointSlices", sample.endpoint_changes)
        yield from _changes("service", "Services", sample.service_changes)
        yield _gauge(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the maps last had all Services.",
            {(family,): sample.synced_at for family in FAMILIES},
            "ip_family",
        )
        yield _gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change of a Service or an EndpointSlice arrived.",
            {(family,): sample.queued_at for family in FAMILIES},
            "ip_family",
        )
        yield _gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy whose endpoints are all on other nodes.",
            {(f, p): sample.no_local.get((f, p), 0) for f in FAMILIES for p in ("internal", "external")},
            "ip_family",
            "traffic_policy",
        )
        for path in ("healthz", "livez"):
            found: dict[_Key, float] = {
                (str(code),): n for (where, code), n in self._answers.copy().items() if where == path
            }
            yield _counter(f"proxy_{path}", f"Answers of /{path} by HTTP status.", found, "code")
        yield _counter(
            "conntrack_reconciler_deleted_entries",
            "Connected UDP sockets that were ended because their backend left the Service.",
            {(family,): sample.cut_off.get(family, 0) for family in FAMILIES},
            "ip_family",
        )


def _histogram(name: str, text: str, buckets: Buckets) -> Metric:
    family = HistogramMetricFamily(f"kubeproxy_{name}", text, labels=["ip_family"])
    for version in FAMILIES:
        buckets.add_to(family, version)
    return family


def _changes(name: str, what: str, numbers: tuple[int, int]) -> Iterator[Metric]:
    total, pending = numbers
    yield _counter(f"sync_proxy_rules_{name}_changes", f"Changes of {what}.", {(): total})
    yield _gauge(f"sync_proxy_rules_{name}_changes_pending", f"Changes of {what} not in the maps.", {(): pending})


def _gauge(name: str, text: str, values: Mapping[_Key, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(f"kubeproxy_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, values: Mapping[_Key, float], *labels: str) -> Metric:
    family = CounterMetricFamily(f"kubeproxy_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
