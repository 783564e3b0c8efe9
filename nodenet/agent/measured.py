"""The agent's metrics for Prometheus. They are read at each scrape."""

from __future__ import annotations

import time

from nodenet.abi import MetricsEntry, MetricsKey
from nodenet.agent.parts import Parts, count_objects
from nodenet.metrics import MapUsage, Sample, WatchCount


class AgentSource:
    """Implements nodenet.metrics.Source."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def missing(self) -> list[str]:
        return self._parts.health.missing()

    def sample(self) -> Sample:
        parts = self._parts
        stats, pipeline, keepers = parts.engine.stats, parts.events.pipeline, parts.keepers
        return Sample(
            node=parts.datapath.config.node_name,
            version=parts.info.version,
            healthy=parts.health.healthy(),
            ready=parts.health.ready.is_set(),
            datapath=self._counters(),
            maps={name: MapUsage(table.count(), table.max_entries) for name, table in parts.datapath.tables.items()},
            objects=count_objects(parts.engine.current),
            flows_seen=pipeline.ring.seen,
            flows_lost={"agent": pipeline.undecoded, "reader": pipeline.ring.lost_by_readers},
            reconcile_runs=stats.runs,
            reconcile_errors=stats.errors,
            writes=dict(stats.writes),
            connections=keepers.connections.by_pod(),
            connections_expired=keepers.connections.expired,
            sockets_ended=keepers.sockets.ended,
            repairs=dict(keepers.integrity.repairs),
            last_sync=stats.last_sync,
            watches={
                kind.name: WatchCount(
                    count.events,
                    count.lists,
                    count.errors + count.undecodable,
                    len(count.unread),
                    count.age(time.monotonic()),
                    count.installed,
                )
                for kind, count in parts.api.stats.items()
            },
        )

    def _counters(self) -> dict[MetricsKey, MetricsEntry]:
        """nn_metrics summed over the CPUs."""
        return {
            key: MetricsEntry(sum(entry.packets for entry in cpus), sum(entry.octets for entry in cpus))
            for key, cpus in self._parts.datapath.tables["nn_metrics"].items()
        }
