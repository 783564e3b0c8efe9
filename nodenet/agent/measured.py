"""The agent's metrics for Prometheus. They are read at each scrape."""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import version

from nodenet.abi import MetricsEntry, MetricsKey
from nodenet.agent.parts import Parts, count_objects
from nodenet.compile.no_local import no_local_endpoints
from nodenet.metrics import MapUsage, Sample, WatchCount
from nodenet.metrics.kubeproxy import ProxySample
from nodenet.store import Snapshot
from nodenet.tables import MAPS


class AgentSource:
    """Implements nodenet.metrics.Source."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # A Snapshot, and the Service ports without a local endpoint in it.
        self._counted: tuple[Snapshot, Counter[tuple[int, str]]] = Snapshot(), Counter()

    def missing(self) -> list[str]:
        return self._parts.health.missing()

    def sample(self) -> Sample:
        parts = self._parts
        stats, pipeline, keepers = parts.engine.stats, parts.events.pipeline, parts.keepers
        return Sample(
            node=parts.datapath.config.node_name,
            version=version("nodenet"),
            healthy=parts.health.healthy(),
            ready=parts.health.ready.is_set(),
            datapath=self._counters(),
            maps={
                name: MapUsage(table.count(), table.max_entries, MAPS[name].fills)
                for name, table in parts.datapath.tables.items()
            },
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
            proxy=self.proxy_sample(),
        )

    def proxy_sample(self) -> ProxySample | None:
        parts, config = self._parts, self._parts.datapath.config
        if not config.services:
            return None
        engine = parts.engine
        syncs, changes = engine.service_syncs, engine.service_changes
        pending = [fed - synced for fed, synced in zip(changes, syncs.synced, strict=True)]
        return ProxySample(
            endpoint_changes=(changes.slices, pending[1]),
            service_changes=(changes.services, pending[0]),
            synced_at=syncs.synced_at,
            queued_at=syncs.queued_at,
            no_local={(f"IPv{version}", policy): count for (version, policy), count in self._no_local().items()},
            cut_off={f"IPv{version}": count for version, count in parts.keepers.sockets.ended_by_version.items()},
        )

    def _no_local(self) -> Counter[tuple[int, str]]:
        """Counted again only if Services or EndpointSlices changed since the last scrape."""
        snapshot = self._parts.engine.current.snapshot
        seen, found = self._counted
        if snapshot.services is not seen.services or snapshot.slices is not seen.slices:
            name = self._parts.datapath.config.node_name
            found = no_local_endpoints(snapshot.services, snapshot.slices.values(), name)
            self._counted = snapshot, found
        return found

    def _counters(self) -> dict[MetricsKey, MetricsEntry]:
        """nn_metrics summed over the CPUs."""
        return {
            key: MetricsEntry(sum(entry.packets for entry in cpus), sum(entry.octets for entry in cpus))
            for key, cpus in self._parts.datapath.tables["nn_metrics"].items()
        }
