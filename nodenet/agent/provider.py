"""What the agent tells its command line: rows of what it holds, read from the last compilation and from the maps.

Called in worker threads; everything read here is replaced as a whole by the agent, never changed in place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nodenet import abi, tables
from nodenet.agent import attachment
from nodenet.agent.api_health import as_rows
from nodenet.agent.explain import explain
from nodenet.endpoint import AttachmentKey
from nodenet.flow.types import RESERVED_NAMES
from nodenet.model import Direction, Protocol

if TYPE_CHECKING:
    from nodenet.agent.core import Agent

Row = Mapping[str, Any]


class AgentProvider:
    """Implements nodenet.rpc.service.Provider."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._rows: dict[str, Callable[[], Iterable[Row]]] = {
            "endpoint": self._endpoints,
            "identity": self._identities,
            "service": self._services,
            "policy": self._policies,
            "ipcache": self._ipcache,
            "ct": self._connections,
            "map": self._maps,
        }

    def healthy(self) -> bool:
        return self._agent.healthy()

    def _cut_off(self) -> bool:
        """Whether the API server has been out of reach or silent for long: what is in force is what was known then."""
        return any(stats.cut_off(time.monotonic()) for stats in self._agent.client.stats.values())

    def rows(self, resource: str) -> Iterable[Row]:
        return self._rows[resource]()

    def explain(self, source: str, destination: str, port: int, protocol: str) -> Row:
        return explain(self._agent.snapshot, source, destination, port, protocol)

    def status(self) -> Row:
        agent = self._agent
        stats, datapath = agent.loop.stats, agent.datapath
        return {
            "node": agent.config.node_name,
            # For people: the probes and CNI go on with what is known, for a restart would not bring the API back.
            "healthy": agent.healthy() and not self._cut_off(),
            "ready": agent.ready.is_set(),
            "readyAfterSeconds": round(agent.ready_after, 2),
            "problems": agent.trouble(),
            "version": agent.info.version,
            "pid": os.getpid(),
            "uptimeSeconds": round(agent.info.uptime / 1e9, 1),
            "kernel": os.uname().release,
            "datapath": {
                "key": datapath.loaded.key,
                "adopted": datapath.adopted,
                "cgroup": str(datapath.cgroup),
                "bpffs": str(agent.config.bpffs),
                "attached": attachment.mechanism().value,
                "policyEnforced": agent.config.enforce_policy,
                "features": [
                    {"name": f.name, "available": f.available, "without": "" if f.available else f.without}
                    for f in datapath.features
                ],
            },
            "reconcile": {
                "runs": stats.runs,
                "writes": dict(stats.writes),
                "firstWrites": dict(stats.first_writes or {}),
                "errors": stats.errors,
                "lastError": stats.last_error,
                "lastDurationSeconds": round(stats.last_duration, 4),
                "lastSync": stats.last_sync,
                "drift": stats.drift,
                "compared": stats.compared,
            },
            "api": as_rows(agent.client.stats, time.monotonic()),
            "repairs": dict(agent.integrity.repairs),
            "objects": agent.objects(),
            "sockets": {"ended": agent.sockets.ended},
            "flows": {
                "seen": agent.pipeline.ring.seen,
                "lost": agent.pipeline.ring.lost,
                "kept": len(agent.pipeline.ring),
                "capacity": agent.pipeline.ring.capacity,
            },
        }

    def _endpoints(self) -> Iterator[Row]:
        agent = self._agent
        entries = agent.desired.tables.get("nn_endpoint", {})
        for key, endpoint in sorted(agent.snapshot.endpoints.items(), key=lambda item: item[1].endpoint_id):
            entry = next((entries[abi.AddressKey(ip)] for ip in endpoint.ips if abi.AddressKey(ip) in entries), None)
            flags = abi.EndpointFlag(entry.flags if entry else 0)
            yield {
                "id": endpoint.endpoint_id,
                "pod": str(endpoint.pod),
                "identity": entry.identity if entry else 0,
                "ips": [str(ip) for ip in endpoint.ips],
                "ingress": _isolation(abi.EndpointFlag.ISOLATED_INGRESS in flags),
                "egress": _isolation(abi.EndpointFlag.ISOLATED_EGRESS in flags),
                "state": "waiting for its pod" if AttachmentKey(*key) in agent.names.unknown_endpoints else "ready",
                "interface": endpoint.host_ifname,
                "ifindex": endpoint.host_ifindex,
                "mac": endpoint.mac,
                "containerId": endpoint.container_id,
                "netns": endpoint.netns,
            }

    def _identities(self) -> Iterator[Row]:
        for number, name in RESERVED_NAMES.items():
            yield {"id": int(number), "namespace": "", "labels": [f"reserved:{name}"], "namedPorts": []}
        for number, labels in sorted(self._agent.names.identities.items()):
            yield {
                "id": number,
                "namespace": labels.namespace,
                "labels": [f"{key}={value}" for key, value in labels.labels],
                "namedPorts": [f"{p.name}={p.port}/{p.protocol}" for p in labels.named_ports],
            }

    def _services(self) -> Iterator[Row]:
        """One row per Service port and address, with the backends as the datapath would choose them now."""
        agent = self._agent
        desired = agent.desired.tables
        frontends, backends = desired.get("nn_frontend", {}), desired.get("nn_backend", {})
        for key, entry in frontends.items():
            if key.slot or not key.port:
                continue
            name = agent.names.services.get(entry.service_id)
            slots = (frontends.get(key._replace(slot=slot)) for slot in range(1, entry.backends + 1))
            targets = (backends.get(abi.U32(slot.backend_id)) for slot in slots if slot)
            yield {
                "id": entry.service_id,
                "service": str(name.ref) if name else "",
                "port": name.name if name else "",
                "frontend": _address(key.addr, key.port),
                "protocol": Protocol(key.protocol).name,
                "backends": [_address(t.addr, t.port) for t in targets if t],
            }

    def _policies(self) -> Iterator[Row]:
        """Allow entries of nn_policy, and a row without a peer for an isolation that nothing opens."""
        names = self._agent.names
        opened = set()
        for key, value in self._agent.desired.tables.get("nn_policy", {}).items():
            opened.add((key.subject, key.direction))
            rule = names.rules.get(value.value)
            bits = key.prefixlen - abi.POLICY_BITS_PROTOCOL
            yield {
                "subject": key.subject,
                "subjectLabels": self._label_text(key.subject),
                "direction": Direction(key.direction).name.lower(),
                "peer": key.peer,
                "peerLabels": self._label_text(key.peer) if key.peer else "anyone",
                "protocol": Protocol(key.protocol).name if key.protocol else "ANY",
                "ports": _port_range(key.port, bits) if key.protocol else "any",
                "rule": f"{rule.namespace}/{rule.policy} {rule.direction}[{rule.index}]" if rule else "",
            }
        for subject, directions in names.isolated_by.items():
            for direction, policies in directions.items():
                if (subject, direction) not in opened:
                    yield {
                        "subject": subject,
                        "subjectLabels": self._label_text(subject),
                        "direction": Direction(direction).name.lower(),
                        "peer": None,
                        "peerLabels": "nobody",
                        "protocol": "",
                        "ports": "",
                        "rule": ", ".join(f"{p.namespace}/{p.name}" for p in policies),
                    }

    def _ipcache(self) -> Iterator[Row]:
        addresses = self._agent.pipeline.names.addresses
        for key, value in self._agent.desired.tables.get("nn_ipcache", {}).items():
            party = addresses.get(key.addr)
            pod = f"{party.namespace}/{party.pod}" if party and party.pod else ""
            yield {
                "ip": str(key.addr),
                "identity": value.value,
                "pod": pod,
                "labels": self._label_text(value.value),
            }
        for key, value in self._agent.desired.tables.get("nn_cidr", {}).items():
            bits = abi.V4_PREFIX_BITS if key.addr.version == 4 else 0
            yield {
                "ip": f"{key.addr}/{key.prefixlen - bits}",
                "identity": value.value,
                "pod": "",
                "labels": self._label_text(value.value),
            }

    def _connections(self) -> Iterator[Row]:
        names = self._agent.names
        now = time.monotonic()
        for key, entry in self._agent.datapath.tables["nn_ct"].items():
            rule = names.rules.get(entry.rule_id)
            service = names.services.get(entry.service_id)
            egress = entry.direction == Direction.EGRESS
            pod, remote = _address(key.pod, key.pod_port), _address(key.remote, key.remote_port)
            yield {
                "protocol": Protocol(key.protocol).name if key.protocol in set(Protocol) else str(key.protocol),
                "source": pod if egress else remote,
                "destination": remote if egress else pod,
                "direction": Direction(entry.direction).name.lower(),
                "state": _ct_state(entry),
                "idleSeconds": max(0, int(now - entry.last_seen)),
                "ageSeconds": max(0, int(now - entry.created)),
                "service": str(service.ref) if service else "",
                "rule": f"{rule.namespace}/{rule.policy}" if rule else "",
                "revision": entry.revision,
            }

    def _maps(self) -> Iterator[Row]:
        for name, table in sorted(self._agent.datapath.tables.items()):
            entries = table.count()
            yield {
                "name": name,
                "id": table.info.id,
                "entries": entries,
                "size": table.max_entries,
                "fill": round(entries / table.max_entries, 4),
                "key": table.spec.key.__name__,
                "value": table.spec.value.__name__,
                "writtenBy": tables.MAPS[name].writer.value,
                "sizeKey": tables.MAPS[name].size.key,
                "whenFull": tables.MAPS[name].full,
                "path": str(self._agent.datapath.pins.map(name)),
            }

    def _label_text(self, number: int) -> str:
        names = self._agent.names
        if number in names.identities:
            labels = names.identities[number]
            return ",".join([f"ns={labels.namespace}", *(f"{k}={v}" for k, v in labels.labels)])
        if number in names.regions:
            return f"cidr:{names.regions[number]}"
        return f"reserved:{RESERVED_NAMES[number]}" if number in RESERVED_NAMES else ""


def _isolation(isolated: bool) -> str:
    return "isolated" if isolated else "open"


def _address(address: object, port: int) -> str:
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _port_range(port: int, bits: int) -> str:
    if bits == 0:
        return "any"
    last = port + (1 << (16 - bits)) - 1
    return str(port) if last == port else f"{port}-{last}"


def _ct_state(entry: abi.CtEntry) -> str:
    flags = abi.CtFlag(entry.flags)
    if flags & abi.CtFlag.RST:
        return "reset"
    if flags & (abi.CtFlag.FIN_FORWARD | abi.CtFlag.FIN_REPLY):
        return "closing"
    return "established" if flags & abi.CtFlag.SEEN_REPLY else "unreplied"
