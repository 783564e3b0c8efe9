"""What the agent tells Prometheus, read at the moment of a scrape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nodenet.abi import MetricsEntry, MetricsKey
from nodenet.metrics import MapUsage, Sample, WatchCount

if TYPE_CHECKING:
    from nodenet.agent.core import Agent


class AgentSource:
    """Implements nodenet.metrics.Source."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def healthy(self) -> bool:
        return self._agent.healthy()

    def ready(self) -> bool:
        return self._agent.ready.is_set()

    def sample(self) -> Sample:
        agent = self._agent
        stats, ring = agent.loop.stats, agent.pipeline.ring
        return Sample(
            node=agent.config.node_name,
            version=agent.info.version,
            healthy=agent.healthy(),
            ready=agent.ready.is_set(),
            datapath=self._counters(),
            maps={name: MapUsage(table.count(), table.max_entries) for name, table in agent.datapath.tables.items()},
            objects=agent.objects(),
            flows_seen=ring.seen,
            flows_lost={"agent": agent.pipeline.undecoded, "reader": ring.lost_by_readers},
            reconcile_runs=stats.runs,
            reconcile_errors=stats.errors,
            writes=dict(stats.writes),
            sockets_ended=agent.sockets.ended,
            repairs=dict(agent.integrity.repairs),
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
                for kind, count in agent.client.stats.items()
            },
        )

    def _counters(self) -> dict[MetricsKey, MetricsEntry]:
        """nn_metrics summed over the CPUs."""
        return {
            key: MetricsEntry(sum(entry.packets for entry in cpus), sum(entry.octets for entry in cpus))
            for key, cpus in self._agent.datapath.tables["nn_metrics"].items()
        }
