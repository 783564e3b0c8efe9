"""The agent's answers to its command line.

The methods run in worker threads. Each answer uses one compilation, so that it never mixes two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nodenet.agent import rows, service_rows, service_view
from nodenet.agent.explain import explain
from nodenet.agent.parts import Parts
from nodenet.agent.status import status
from nodenet.engine import Compiled

Row = Mapping[str, Any]

_OF_COMPILED: Mapping[str, Callable[[Compiled], Iterable[Row]]] = {
    "endpoint": rows.endpoints,
    "identity": rows.identities,
    "policy": rows.policies,
    "ipcache": rows.ipcache,
}


class AgentProvider:
    """Implements nodenet.rpc.service.Provider."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def healthy(self) -> bool:
        return self._parts.health.healthy()

    def status(self) -> Row:
        return status(self._parts)

    def rows(self, resource: str, name: str = "") -> Iterable[Row]:
        compiled, datapath = self._parts.engine.current, self._parts.datapath
        if resource == "service":
            return service_rows.services(compiled, self._traffic(), name)
        if resource == "service_view":
            return service_view.service_views(compiled, self._traffic(), datapath.config.node_name, name)
        if resource == "ct":
            return rows.connections(compiled, datapath.tables["nn_ct"].items(), time.monotonic())
        if resource == "map":
            return rows.maps(datapath.tables, datapath.pins)
        return _OF_COMPILED[resource](compiled)

    def _traffic(self) -> service_rows.Traffic:
        flows, reported = self._parts.events.pipeline.services, self._parts.datapath.config.flow_events
        now = self._parts.keepers.connections.last.services
        return service_rows.Traffic(now, flows.opened.copy() if reported else None, flows.dropped.copy())

    def explain(self, source: str, destination: str, port: int, protocol: str) -> Row:
        return explain(self._parts.engine.current.snapshot, source, destination, port, protocol)
