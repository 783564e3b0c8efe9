"""The agent's part of `nodenet status`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nodenet.agent import attachment
from nodenet.agent.datapath import Datapath
from nodenet.agent.parts import Parts, count_objects
from nodenet.agent.stale import stale
from nodenet.compile.shares import LeftOut
from nodenet.compile.state import ServiceWarning
from nodenet.flow.ring import Ring
from nodenet.flow.types import Flow
from nodenet.link.handle import Interface
from nodenet.reconcile.loop import Stats

Row = Mapping[str, Any]
_MOST_WARNINGS = 10


def status(parts: Parts) -> Row:
    """The status as one object, for JSON."""
    health, config = parts.health, parts.datapath.config
    return {
        "node": config.node_name,
        # This is for users and includes the state of the API. Probes and CNI use only healthy(), because a restart of
        # the agent would not bring the API back.
        "healthy": health.healthy() and health.api_known(),
        "ready": health.ready.is_set(),
        "readyAfterSeconds": round(health.ready_after, 2),
        "problems": health.problems(),
        "version": parts.info.version,
        "pid": os.getpid(),
        "uptimeSeconds": round(parts.info.uptime / 1e9, 1),
        "kernel": os.uname().release,
        "datapath": _datapath(parts.datapath),
        "uplink": _uplink(parts.keepers.uplink.known),
        "uplinkPrograms": list(parts.keepers.uplink_programs.interfaces),
        "podMtu": parts.keepers.pod_mtu(),
        "hostPorts": parts.keepers.host_ports.served_by,
        "masquerade": [f"IPv{version}" for version in parts.keepers.masquerade.versions],
        "reconcile": _reconcile(parts.engine.stats),
        "stale": stale(parts.engine.current, parts.engine.stats.stale),
        "api": parts.api.as_rows(),
        "repairs": dict(parts.keepers.integrity.repairs),
        "objects": count_objects(parts.engine.current),
        "leftOut": [_left_out(one) for one in parts.engine.current.names.left_out],
        "notServed": _not_served(parts.engine.current.names.warnings),
        "connections": parts.keepers.connections.status(),
        "sockets": {"ended": parts.keepers.sockets.ended},
        "flows": _flows(parts.events.pipeline.ring),
    }


def _uplink(found: Interface | None) -> Row | None:
    return None if found is None else {"interface": found.name, "mtu": found.mtu}


def _not_served(warnings: tuple[ServiceWarning, ...]) -> Row:
    """`service list` has all of them."""
    return {"parts": len(warnings), "first": [str(one) for one in warnings[:_MOST_WARNINGS]]}


def _left_out(one: LeftOut) -> Row:
    """A policy whose rules do not fit into the maps."""
    return {
        "namespace": one.policy.namespace,
        "policy": one.policy.name,
        "unit": one.unit,
        "needed": one.asked,
        "limit": one.limit,
        "subjects": one.subjects,
    }


def _datapath(datapath: Datapath) -> Row:
    return {
        "key": datapath.loaded.key,
        "adopted": datapath.adopted,
        "cgroup": str(datapath.cgroup),
        "bpffs": str(datapath.config.bpffs),
        "attached": attachment.mechanism().value,
        "policyEnforced": datapath.config.enforce_policy,
        "services": datapath.config.services,
        "features": [
            {"name": f.name, "available": f.available, "without": "" if f.available else f.without}
            for f in datapath.features
        ],
    }


def _reconcile(stats: Stats) -> Row:
    return {
        "runs": stats.runs,
        "writes": dict(stats.writes),
        "firstWrites": dict(stats.first_writes or {}),
        "errors": stats.errors,
        "lastError": stats.last_error,
        "lastDurationSeconds": round(stats.last_duration, 4),
        "lastSync": stats.last_sync,
        "drift": stats.drift,
        "compared": stats.compared,
    }


def _flows(ring: Ring[Flow]) -> Row:
    return {"seen": ring.seen, "lost": ring.lost, "kept": len(ring), "capacity": ring.capacity}
