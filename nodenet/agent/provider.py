"""The agent's answers to its command line.

The methods run in worker threads. Each answer uses one compilation, so that it never mixes two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nodenet.agent import rows, service_rows, service_view
from nodenet.agent.explain import explain
from nodenet.agent.map_keys import parse_key
from nodenet.agent.map_words import Words
from nodenet.agent.parts import Parts
from nodenet.agent.program_rows import Places, programs
from nodenet.agent.status import status
from nodenet.bpf.loader import program_id
from nodenet.engine import Compiled
from nodenet.errors import BadInputError
from nodenet.tables import MAPS

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

    def rows(self, resource: str, name: str = "", key: Sequence[str] = ()) -> Iterable[Row]:
        compiled, datapath = self._parts.engine.current, self._parts.datapath
        if resource == "service":
            return service_rows.services(compiled, self._traffic(), name)
        if resource == "service_view":
            return service_view.service_views(compiled, self._traffic(), datapath.config.node_name, name)
        if resource == "ct":
            return rows.connections(compiled, datapath.tables["nn_ct"].items(), time.monotonic())
        if resource == "map":
            return rows.maps(datapath.tables, datapath.pins)
        if resource == "program":
            return self._programs()
        if resource in ("map_dump", "map_get"):
            return self._entries(resource, name, key)
        return _OF_COMPILED[resource](compiled)

    def _entries(self, resource: str, name: str, key: Sequence[str]) -> Iterable[Row]:
        """The entries of one map. Raises BadInputError for a map or key that cannot be read."""
        table = self._parts.datapath.tables.get(name)
        if table is None:
            known = "its entries cannot be read by key" if name in MAPS else "there is no such map"
            raise BadInputError(f"map {name}: {known}", f"these can be: {', '.join(self._parts.datapath.tables)}")
        words = Words(self._parts.engine.current, time.monotonic())
        if resource == "map_dump":
            return words.rows(name, table.items())
        wanted = parse_key(table.spec.key, key)
        value = table.get(wanted)
        return () if value is None else words.rows(name, [(wanted, value)])

    def _programs(self) -> Iterable[Row]:
        parts = self._parts
        places = Places(
            parts.engine.current.snapshot.endpoints.values(),
            parts.keepers.uplink_programs.interfaces,
            str(parts.datapath.cgroup),
            parts.datapath.pins,
        )
        ours = {name: program_id(fd) for name, fd in parts.datapath.loaded.programs.items()}
        return programs(places, ours)

    def _traffic(self) -> service_rows.Traffic:
        flows, reported = self._parts.events.pipeline.services, self._parts.datapath.config.flow_events
        connections = self._parts.keepers.connections
        return service_rows.Traffic(
            service_rows.Counts(
                connections.last.services, flows.opened.copy() if reported else None, flows.dropped.copy()
            ),
            service_rows.Counts(
                connections.outside.services,
                flows.opened_outside.copy() if reported else None,
                flows.dropped_outside.copy(),
            ),
        )

    def explain(self, source: str, destination: str, port: int, protocol: str) -> Row:
        return explain(self._parts.engine.current.snapshot, source, destination, port, protocol)
