"""The columns of the list commands, by resource of the agent."""

from __future__ import annotations

from typing import Any

from nodenet.cli.output import Column


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "-"


def _seconds(value: Any) -> str:
    return f"{value}s" if value is not None else "-"


def _affinity(value: Any) -> str:
    return f"{value}s" if value else "-"


def _members(members: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in members.items())


_ENTRY = (Column("KEY", "key", _members), Column("VALUE", "value", _members))
COLUMNS: dict[str, tuple[Column, ...]] = {
    "endpoint": (
        Column("ID", "id"),
        Column("POD", "pod"),
        Column("IDENTITY", "identity"),
        Column("LABELS", "labels"),
        Column("ADDRESSES", "ips"),
        Column("INGRESS", "ingress"),
        Column("EGRESS", "egress"),
        Column("STATE", "state"),
        Column("INTERFACE", "interface"),
    ),
    "identity": (
        Column("ID", "id"),
        Column("NAMESPACE", "namespace"),
        Column("LABELS", "labels"),
        Column("NAMED PORTS", "namedPorts"),
    ),
    "service": (
        Column("ID", "id"),
        Column("SERVICE", "service"),
        Column("PORT", "port"),
        Column("TYPE", "type"),
        Column("FRONTEND", "frontend"),
        Column("PROTOCOL", "protocol"),
        Column("SCOPE", "scope"),
        Column("POLICY", "trafficPolicy"),
        Column("AFFINITY", "affinitySeconds", _affinity),
        Column("FLOWS", "flows"),
        Column("OPENED", "opened"),
        Column("DROPPED", "dropped"),
        Column("BACKENDS", "backends"),
        Column("NOT SERVED", "notServed"),
    ),
    "policy": (
        Column("SUBJECT", "subject"),
        Column("LABELS", "subjectLabels"),
        Column("DIRECTION", "direction"),
        Column("TIER", "tier"),
        Column("PRECEDENCE", "precedence"),
        Column("ACTION", "action"),
        Column("PEER", "peer"),
        Column("PEER LABELS", "peerLabels"),
        Column("PROTOCOL", "protocol"),
        Column("PORTS", "ports"),
        Column("RULE", "rule"),
    ),
    "ipcache": (
        Column("IP", "ip"),
        Column("IDENTITY", "identity"),
        Column("POD", "pod"),
        Column("LABELS", "labels"),
    ),
    "ct": (
        Column("PROTOCOL", "protocol"),
        Column("SOURCE", "source"),
        Column("DESTINATION", "destination"),
        Column("DIRECTION", "direction"),
        Column("STATE", "state"),
        Column("IDLE", "idleSeconds", _seconds),
        Column("AGE", "ageSeconds", _seconds),
        Column("SERVICE", "service"),
        Column("RULE", "rule"),
    ),
    "program": (
        Column("PROGRAM", "program"),
        Column("ID", "id"),
        Column("HOOK", "hook"),
        Column("INTERFACE", "interface"),
        Column("POD", "pod"),
        Column("STATE", "state"),
        Column("RUNS", "runs"),
        Column("NS", "nanoseconds"),
    ),
    "map_dump": _ENTRY,
    "map_get": _ENTRY,
    "map": (
        Column("NAME", "name"),
        Column("TYPE", "type"),
        Column("ID", "id"),
        Column("ENTRIES", "entries"),
        Column("SIZE", "size"),
        Column("FILL", "fill", _percent),
        Column("KEY", "key"),
        Column("VALUE", "value"),
        Column("WRITTEN BY", "writtenBy"),
        Column("SIZE KEY", "sizeKey"),
    ),
}
