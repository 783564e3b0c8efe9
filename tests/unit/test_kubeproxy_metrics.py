"""kube-proxy's metrics: names, types and labels, and that each value is one that happened."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import aiohttp
import pytest
from prometheus_client import Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from nodenet.compile.no_local import no_local_endpoints
from nodenet.compile.state import LocalNode
from nodenet.engine import Engine
from nodenet.kinds import ENDPOINT_SLICE, SERVICE
from nodenet.kube.decode import decode
from nodenet.metrics import Metrics
from nodenet.metrics.histogram import Buckets
from nodenet.metrics.kubeproxy import FAMILIES
from nodenet.metrics.proxy import metrics_port_routes
from nodenet.metrics.server import HttpServer
from nodenet.model import Node, ServicePort, SliceEndpoint
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.loop import Run
from nodenet.reconcile.service_syncs import Changes
from nodenet.store import Delta, Listing, Op, listings
from nodenet.testing import FakeClock, fake_tables
from tests.unit.compile.build import TCP, service, slice_
from tests.unit.test_metrics import Scripted, scrape

# kube-proxy 1.36 (Kubernetes metrics reference): type and labels.
EXPECTED = {
    "kubeproxy_sync_proxy_rules_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_sync_full_proxy_rules_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_sync_partial_proxy_rules_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_network_programming_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": ("gauge", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": ("gauge", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_endpoint_changes": ("counter", set()),
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_service_changes": ("counter", set()),
    "kubeproxy_sync_proxy_rules_service_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": ("gauge", {"ip_family", "traffic_policy"}),
    "kubeproxy_proxy_healthz": ("counter", {"code"}),
    "kubeproxy_proxy_livez": ("counter", {"code"}),
    "kubeproxy_conntrack_reconciler_deleted_entries": ("counter", {"ip_family"}),
}


def recorded() -> Metrics:
    metrics = Metrics(Scripted())
    metrics.proxy.ran(0.003, full=True)
    metrics.proxy.ran(0.003, full=False)
    metrics.proxy.programmed(0.3)
    metrics.proxy.answered("healthz", 503)
    metrics.proxy.answered("livez", 200)
    return metrics


def test_names_types_and_labels_are_kube_proxys() -> None:
    text = recorded().proxy_text().decode()
    found = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in text_string_to_metric_families(text)
        if not family.name.startswith("process_")
    }
    assert found == EXPECTED


def test_values() -> None:
    found, expected = scrape(recorded()), _values()
    assert {key: found.get(key) for key in expected} == expected
    without = Scripted()
    without.value = replace(without.value, proxy=None)
    assert not any(name[0].startswith("kubeproxy_") for name in scrape(Metrics(without)))
    assert b"kubeproxy" not in Metrics(without).proxy_text()


def _values() -> dict[tuple[str, ...], float]:
    prefix = "kubeproxy_sync_"
    both = {
        f"{prefix}proxy_rules_duration_seconds_count": 2,
        f"{prefix}full_proxy_rules_duration_seconds_count": 1,
        f"{prefix}partial_proxy_rules_duration_seconds_sum": 0.003,
        "kubeproxy_network_programming_duration_seconds_sum": 0.3,
        f"{prefix}proxy_rules_last_timestamp_seconds": 1700000001.0,
        f"{prefix}proxy_rules_last_queued_timestamp_seconds": 1700000002.0,
    }
    return {(name, family): value for name, value in both.items() for family in FAMILIES} | {
        ("kubeproxy_network_programming_duration_seconds_bucket", "0.25", "IPv4"): 0,
        ("kubeproxy_network_programming_duration_seconds_bucket", "0.5", "IPv4"): 1,
        (f"{prefix}proxy_rules_duration_seconds_bucket", "0.004", "IPv6"): 2,
        (f"{prefix}proxy_rules_duration_seconds_bucket", "0.002", "IPv6"): 0,
        (f"{prefix}proxy_rules_endpoint_changes_total",): 7,
        (f"{prefix}proxy_rules_endpoint_changes_pending",): 2,
        (f"{prefix}proxy_rules_service_changes_total",): 3,
        (f"{prefix}proxy_rules_service_changes_pending",): 1,
        (f"{prefix}proxy_rules_no_local_endpoints_total", "IPv4", "internal"): 4,
        (f"{prefix}proxy_rules_no_local_endpoints_total", "IPv6", "external"): 0,
        ("kubeproxy_proxy_healthz_total", "503"): 1,
        ("kubeproxy_proxy_livez_total", "200"): 1,
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", "IPv6"): 5,
    }


def test_buckets_count_as_prometheus_does() -> None:
    bounds = (0.1, 1.0, 2.0)
    registry = CollectorRegistry()
    theirs, ours = Histogram("x", "x", buckets=bounds, registry=registry), Buckets(bounds)
    for value in (0.0, 0.1, 0.10001, 1.0, 1.5, 2.0, 3.0):
        theirs.observe(value)
        ours.observe(value)
    family = HistogramMetricFamily("x", "x", labels=[])
    ours.add_to(family)
    (expected,) = registry.collect()
    assert ours.count == 7
    assert {(s.name, s.labels.get("le")): s.value for s in family.samples} == {
        (s.name, s.labels.get("le")): s.value for s in expected.samples if not s.name.endswith("_created")
    }


async def test_the_port_of_kube_proxy() -> None:
    server = HttpServer("proxy_metrics_address", metrics_port_routes(recorded().proxy_text))
    port = await server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            for path, part in (("/metrics", "kubeproxy_sync_"), ("/healthz", "ok"), ("/proxyMode", "ebpf")):
                async with session.get(path) as answer:
                    text = await answer.text()
                    assert (answer.status, part in text, "nodenet_" in text) == (200, True, False)
    finally:
        await server.stop()


class World:
    """An engine on a clock of its own, whose runs the test makes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tables = fake_tables()
        self.engine = Engine(LocalNode("node1"), self.tables, NoPrograms(), self.clock)

    def run(self, **more: bool) -> tuple[float, ...] | None:
        """The latencies that the run recorded; None if it was no run for Services."""
        outcome = self.engine.run_once()
        found = self.engine.finished(Run(0.1, False, None, services=True, full=outcome.full, **more))
        return None if found is None else tuple(found)

    @property
    def pending(self) -> Changes:
        fed, synced = self.engine.service_changes, self.engine.service_syncs.synced
        return Changes(*(a - b for a, b in zip(fed, synced, strict=True)))


def test_changes_wait_until_the_maps_have_them() -> None:
    world = World()
    syncs = world.engine.service_syncs
    old = slice_("web", "10.0.0.1")
    world.engine.feed(*listings([Node("node1"), service("web", "10.96.0.1"), old]))
    assert (world.pending, syncs.synced_at, syncs.queued_at) == (Changes(1, 1), 0.0, world.clock.now)
    # A list says nothing about when its objects changed.
    assert world.run() == ()
    assert (world.pending, syncs.synced_at) == (Changes(0, 0), world.clock.now)
    # Nothing of Services changed.
    world.engine.feed(Delta(Op.MODIFIED, Node("node2")))
    assert world.run() is None
    queued = syncs.queued_at
    world.clock.now += 5
    changed = replace(slice_("web", "10.0.0.1", "10.0.0.2"), changed_at=world.clock.now - 2)
    world.engine.feed(Delta(Op.MODIFIED, changed))
    # An equal object is no change.
    world.engine.feed(Delta(Op.MODIFIED, replace(changed, changed_at=world.clock.now)))
    assert (world.pending, syncs.queued_at) == (Changes(0, 1), queued + 5)
    world.clock.now += 1
    assert world.run() == (3.0,)
    assert world.run() is None


def test_a_change_counts_when_a_later_run_brings_it_into_force() -> None:
    world = World()
    world.engine.feed(*listings([Node("node1"), service("web", "10.96.0.1")]))
    world.run()
    changed_at = world.clock.now + 1
    world.clock.now += 2
    world.engine.feed(Delta(Op.ADDED, replace(slice_("web", "10.0.0.1"), changed_at=changed_at)))
    world.engine.run_once()
    assert world.engine.finished(Run(0.1, True, None, services=False)) is None
    assert world.pending == Changes(0, 1)
    world.clock.now += 3
    assert world.run() == (4.0,)


def test_changes_from_before_the_start_and_from_fast_clocks() -> None:
    world = World()
    world.engine.feed(*listings([Node("node1"), service("web", "10.96.0.1")]))
    world.run()
    before, after = world.clock.now - 1, world.clock.now + 60
    for number, changed_at in enumerate((before, after, 0.0)):
        slice_of = replace(slice_("web", "10.0.0.1", name=f"web-{number}"), changed_at=changed_at)
        world.engine.feed(Delta(Op.ADDED, slice_of))
    assert world.run() == (0.0,)


def test_a_new_list_counts_the_objects_that_differ() -> None:
    world = World()
    web, other = service("web", "10.96.0.1"), service("other", "10.96.0.2")
    world.engine.feed(*listings([Node("node1"), web, other]))
    assert world.engine.service_changes.services == 2
    world.engine.feed(Listing(SERVICE, (web, replace(other, internal_local=True))))
    assert world.engine.service_changes.services == 3
    world.engine.feed(Listing(SERVICE, (web,)))
    assert world.engine.service_changes.services == 4


_TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000.5),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000.123456),
        ("yesterday", None),
        ("2023-13-14T22:13:20Z", None),
    ],
)
def test_the_annotation_of_an_endpoint_slice(text: str, expected: float | None) -> None:
    raw = (
        f'{{"metadata":{{"name":"web-1","namespace":"default","labels":{{"kubernetes.io/service-name":"web"}},'
        f'"annotations":{{"{_TRIGGER}":"{text}"}}}},"endpoints":[]}}'
    )
    found = decode(ENDPOINT_SLICE, raw.encode())
    assert found.obj.changed_at == (expected or 0.0)  # type: ignore[union-attr]
    assert bool(found.unread) is (expected is None)
    assert all(f"metadata.annotations[{_TRIGGER}]: expected an RFC 3339 time" in part for part in found.unread)


def test_service_ports_without_a_local_endpoint() -> None:
    here, there = (SliceEndpoint((ip_address(f"10.0.0.{n}"),), node_name=f"node{n}") for n in (1, 2))
    services = [
        service("internal", "10.96.0.1", internal_local=True),
        service("both", "10.96.0.2", "fd00::2", internal_local=True, external_local=True),
        service("no-address", "10.96.0.3", external_local=True),
        service("cluster", "10.96.0.4"),
        service("here", "10.96.0.5", internal_local=True),
        # Nobody has an endpoint: that is no matter of the policy.
        service("empty", "10.96.0.6", internal_local=True),
        service("headless", internal_local=True),
    ]
    services[1] = replace(services[1], ports=(ServicePort("", TCP, 80, 30080),))
    elsewhere = [slice_(name, there) for name in ("internal", "both", "no-address", "cluster", "headless")]
    found = no_local_endpoints({s.ref: s for s in services}, [*elsewhere, slice_("here", here, there)], "node1")
    assert found == {(4, "internal"): 2, (4, "external"): 1}
