"""What a scrape shows, over a real HTTP server."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nodenet.abi import LOST_EVENTS, EntryEnd, FairTable, MetricsEntry, MetricsKey
from nodenet.errors import CannotRunError
from nodenet.metrics import MapUsage, Metrics, Sample, WatchCount
from nodenet.metrics.kubeproxy import ProxySample
from nodenet.metrics.page import PAGE, families, page
from nodenet.metrics.server import HttpServer, health_routes, metrics_routes
from nodenet.tables import MAPS

SAMPLE = Sample(
    node="node-1",
    version="0.1.0",
    healthy=True,
    ready=False,
    datapath={
        MetricsKey(0, 1): MetricsEntry(10, 1000),
        MetricsKey(0, 2): MetricsEntry(20, 2000),
        MetricsKey(133, 1): MetricsEntry(3, 222),
        MetricsKey(99, 2): MetricsEntry(1, 1),
        # Flooded multicast on its way into a pod; a pod's own query is a drop.
        MetricsKey(201, 1): MetricsEntry(8, 800),
        MetricsKey(201, 2): MetricsEntry(9, 900),
        MetricsKey(LOST_EVENTS, 1): MetricsEntry(5, 0),
        MetricsKey(LOST_EVENTS, 2): MetricsEntry(6, 0),
        MetricsKey.ended(FairTable.CT, EntryEnd.EXPIRED): MetricsEntry(40, 0),
        MetricsKey.ended(FairTable.FRAG, EntryEnd.EVICTED): MetricsEntry(41, 0),
    },
    maps={"nn_ct": MapUsage(50, 200), "nn_events": MapUsage(0, 0), "nn_state": MapUsage(1, 1, fills=False)},
    objects={"endpoints": 2, "policies": 4},
    flows_seen=30,
    flows_lost={"reader": 7},
    reconcile_runs=3,
    reconcile_errors=1,
    writes={"nn_policy": 12},
    sockets_ended=2,
    repairs={"program": 3, "pin": 1},
    last_sync=1700000000.5,
    watches={"Pod": WatchCount(9, 1, 2, 3, 4.5)},
    proxy=ProxySample((7, 2), (3, 1), 1700000001.0, 1700000002.0, {("IPv4", "internal"): 4}, {"IPv6": 5}),
)


@dataclass
class Scripted:
    value: Sample = field(default_factory=lambda: SAMPLE)
    lacks: list[str] = field(default_factory=lambda: ["waiting for the first list of: Pod"])

    def sample(self) -> Sample:
        return self.value

    def proxy_sample(self) -> ProxySample | None:
        return self.value.proxy

    def missing(self) -> list[str]:
        return self.lacks


def server_of(source: Scripted) -> HttpServer:
    return HttpServer("metrics_address", [*metrics_routes(Metrics(source).text), *health_routes(source)])


def scrape(metrics):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_everything_that_is_known_is_shown():
    metrics = Metrics(Scripted())
    metrics.reconciled(0.02, failed=False)
    metrics.cni_operation("ADD", 0.004, failed=True)
    found = scrape(metrics)
    expected = {
        ("nodenet_build_info", "0.1.0", "node-1"): 1,
        ("nodenet_healthy",): 1,
        ("nodenet_ready",): 0,
        ("nodenet_objects", "endpoints"): 2,
        ("nodenet_forwarded_packets_total", "INGRESS"): 10,
        ("nodenet_forwarded_bytes_total", "EGRESS"): 2000,
        ("nodenet_dropped_packets_total", "INGRESS", "POLICY_DENIED"): 3,
        ("nodenet_dropped_bytes_total", "INGRESS", "POLICY_DENIED"): 222,
        ("nodenet_dropped_packets_total", "99", "EGRESS"): 1,
        ("nodenet_flooded_packets_total",): 8,
        ("nodenet_flooded_bytes_total",): 800,
        ("nodenet_dropped_packets_total", "EGRESS", "MULTICAST_HANDLED"): 9,
        ("nodenet_dropped_packets_total", "INGRESS", "MULTICAST_HANDLED"): None,
        ("nodenet_map_entries", "nn_ct"): 50,
        ("nodenet_map_entries", "nn_state"): 1,
        ("nodenet_map_pressure", "nn_state"): None,
        ("nodenet_map_max_entries", "nn_ct"): 200,
        ("nodenet_map_pressure", "nn_ct"): 0.25,
        ("nodenet_map_pressure", "nn_events"): 0,
        ("nodenet_table_entries_ended_total", "expired", "nn_ct"): 40,
        ("nodenet_table_entries_ended_total", "evicted", "nn_frag"): 41,
        ("nodenet_flows_seen_total",): 30,
        ("nodenet_flows_lost_total", "kernel"): 11,
        ("nodenet_flows_lost_total", "reader"): 7,
        ("nodenet_reconcile_runs_total",): 3,
        ("nodenet_reconcile_errors_total",): 1,
        ("nodenet_map_writes_total", "nn_policy"): 12,
        ("nodenet_service_sockets_ended_total",): 2,
        ("nodenet_repairs_total", "program"): 3,
        ("nodenet_repairs_total", "pin"): 1,
        ("nodenet_reconcile_last_success_timestamp_seconds",): 1700000000.5,
        ("nodenet_api_watch_events_total", "Pod"): 9,
        ("nodenet_api_watch_errors_total", "Pod"): 2,
        ("nodenet_api_kind_installed", "Pod"): 1,
        ("nodenet_api_unread_objects", "Pod"): 3,
        ("nodenet_api_last_byte_age_seconds", "Pod"): 4.5,
        ("nodenet_reconcile_duration_seconds_count", "success"): 1,
        ("nodenet_cni_operation_duration_seconds_count", "ADD", "error"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert not any(key[0].startswith("nodenet_dropped") and "255" in key for key in found)
    assert found["process_resident_memory_bytes",] > 1 << 20
    assert found["process_open_fds",] > 0


def test_the_page_is_that_of_the_code():
    assert PAGE.read_text() == page(families()), "make metrics-page writes it"
    # A metric without a value would be listed without its labels.
    assert [family.name for family in families() if not family.samples] == []


def test_maps_that_are_full_by_design():
    assert {name for name, one in MAPS.items() if not one.fills} == {
        *("nn_state", "nn_metrics", "nn_scratch", "nn_ct_slot", "nn_nat_slot", "nn_frag_slot"),
        *("nn_affinity", "nn_affinity_out", "nn_port", "nn_claim", "nn_sock_peer", "nn_sock_sent"),
    }


def test_nothing_is_read_before_a_scrape():
    class Unready(Scripted):
        def sample(self) -> Sample:
            raise AssertionError("read too early")

    Metrics(Unready())


async def test_http():
    source = Scripted()
    server = server_of(source)
    port = await server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/metrics") as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"].startswith("text/plain; version=")
                assert "nodenet_flows_seen_total 30.0" in await answer.text()
            for path, lacks, status, text in (
                # The process is alive while the API server is away: a restart would not bring it back.
                ("/livez", ["a", "b"], 200, "ok\n"),
                ("/healthz", ["a", "b"], 200, "ok\n"),
                ("/readyz", ["a", "b"], 503, "a\nb\n"),
                ("/readyz", [], 200, "ok\n"),
            ):
                source.lacks = lacks
                async with session.get(path) as answer:
                    assert (answer.status, await answer.text()) == (status, text)
        second = server_of(source)
        with pytest.raises(CannotRunError, match=f"metrics_address 127.0.0.1:{port}"):
            await second.start(f"127.0.0.1:{port}")
    finally:
        await server.stop()


async def test_probes_have_an_address_of_their_own():
    source = Scripted()
    server = HttpServer("health_address", health_routes(source))
    port = await server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/livez") as answer:
                assert answer.status == 200
            async with session.get("/metrics") as answer:
                assert answer.status == 404
    finally:
        await server.stop()


async def test_scrapes_at_once_read_the_maps_once():
    class Slow(Scripted):
        reads = 0
        begun, go_on = threading.Event(), threading.Event()

        def sample(self) -> Sample:
            self.reads += 1
            self.begun.set()
            assert self.go_on.wait(10)
            return super().sample()

    source = Slow()
    server = server_of(source)
    port = await server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def scrape() -> str:
                async with session.get("/metrics") as answer:
                    return await answer.text()

            asking = [asyncio.create_task(scrape()) for _ in range(20)]
            assert await asyncio.to_thread(source.begun.wait, 10)
            async with session.get("/healthz") as answer:
                assert answer.status == 200
            source.go_on.set()
            texts = set(await asyncio.gather(*asking))
        assert all("nodenet_flows_seen_total 30.0" in text for text in texts)
        assert source.reads <= 2, "those that ask after the first is answered read again"
    finally:
        await server.stop()
