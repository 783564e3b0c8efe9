"""Rows for `nodenet list`, from one compilation and from the maps. Read-only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodenet import abi
from nodenet.abi.carried import ct_lifetime
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.compile import Names
from nodenet.endpoint import AttachmentKey
from nodenet.engine import Compiled
from nodenet.flow.types import RESERVED_NAMES
from nodenet.model import Direction, Protocol
from nodenet.tables import MAPS

Row = Mapping[str, Any]


def endpoints(compiled: Compiled) -> Iterator[Row]:
    """This node's endpoints, sorted by endpoint_id."""
    entries = compiled.desired.tables.get("nn_endpoint", {})
    for key, endpoint in sorted(compiled.snapshot.endpoints.items(), key=lambda item: item[1].endpoint_id):
        entry = next((entries[abi.AddressKey(ip)] for ip in endpoint.ips if abi.AddressKey(ip) in entries), None)
        flags = abi.EndpointFlag(entry.flags if entry else 0)
        yield {
            "id": endpoint.endpoint_id,
            "pod": str(endpoint.pod),
            "identity": entry.identity if entry else 0,
            "ips": [str(ip) for ip in endpoint.ips],
            "ingress": _isolation(abi.EndpointFlag.ISOLATED_INGRESS in flags),
            "egress": _isolation(abi.EndpointFlag.ISOLATED_EGRESS in flags),
            "state": "waiting for its pod" if AttachmentKey(*key) in compiled.names.unknown_endpoints else "ready",
            "interface": endpoint.host_ifname,
            "ifindex": endpoint.host_ifindex,
            "mac": endpoint.mac,
            "containerId": endpoint.container_id,
            "netns": endpoint.netns,
        }


def identities(compiled: Compiled) -> Iterator[Row]:
    """All identities: first the reserved ones, then those of label sets."""
    for number, name in RESERVED_NAMES.items():
        yield {"id": int(number), "namespace": "", "labels": [f"reserved:{name}"], "namedPorts": []}
    for number, labels in sorted(compiled.names.identities.items()):
        yield {
            "id": number,
            "namespace": labels.namespace,
            "labels": [f"{key}={value}" for key, value in labels.labels],
            "namedPorts": [f"{p.name}={p.port}/{p.protocol}" for p in labels.named_ports],
        }


def policies(compiled: Compiled) -> Iterator[Row]:
    """The allow entries of nn_policy, and a row without a peer for each isolated direction without any allow."""
    names = compiled.names
    opened = set()
    for key, value in compiled.desired.tables.get("nn_policy", {}).items():
        opened.add((key.subject, key.direction))
        rule = names.rules.get(value.rule_id)
        bits = key.prefixlen - abi.POLICY_BITS_PROTOCOL
        yield {
            "subject": key.subject,
            "subjectLabels": _label_text(names, key.subject),
            "direction": Direction(key.direction).name.lower(),
            "peer": key.peer,
            "peerLabels": _label_text(names, key.peer) if key.peer else "anyone",
            "protocol": Protocol(key.protocol).name if key.protocol else "ANY",
            "ports": _port_range(key.port, bits) if key.protocol else "any",
            "rule": f"{rule.namespace}/{rule.policy} {rule.direction}[{rule.index}]" if rule else "",
        }
    for subject, directions in names.isolated_by.items():
        for direction, policies in directions.items():
            if (subject, direction) not in opened:
                yield {
                    "subject": subject,
                    "subjectLabels": _label_text(names, subject),
                    "direction": Direction(direction).name.lower(),
                    "peer": None,
                    "peerLabels": "nobody",
                    "protocol": "",
                    "ports": "",
                    "rule": ", ".join(f"{p.namespace}/{p.name}" for p in policies),
                }


def ipcache(compiled: Compiled) -> Iterator[Row]:
    """The addresses, then the regions of policies' ipBlocks."""
    names, addresses = compiled.names, compiled.flow_names.addresses
    for key, value in compiled.desired.tables.get("nn_ipcache", {}).items():
        party = addresses.get(key.addr)
        pod = f"{party.namespace}/{party.pod}" if party and party.pod else ""
        yield {
            "ip": str(key.addr),
            "identity": value.value,
            "pod": pod,
            "labels": _label_text(names, value.value),
        }
    for key, value in compiled.desired.tables.get("nn_cidr", {}).items():
        bits = abi.V4_PREFIX_BITS if key.addr.version == 4 else 0
        yield {
            "ip": f"{key.addr}/{key.prefixlen - bits}",
            "identity": value.value,
            "pod": "",
            "labels": _label_text(names, value.value),
        }


def connections(compiled: Compiled, entries: Iterable[tuple[abi.CtKey, abi.CtEntry]], now: float) -> Iterator[Row]:
    """The entries of nn_ct. `now`: seconds of the monotonic clock."""
    names = compiled.names
    for key, entry in entries:
        rule = names.rules.get(entry.rule_id)
        service = names.services.get(entry.service_id)
        egress = entry.direction == Direction.EGRESS
        pod, remote = address_text(key.pod, key.pod_port), address_text(key.remote, key.remote_port)
        yield {
            "protocol": Protocol(key.protocol).name if key.protocol in set(Protocol) else str(key.protocol),
            "source": pod if egress else remote,
            "destination": remote if egress else pod,
            "direction": Direction(entry.direction).name.lower(),
            "state": _ct_state(key, entry, int(now)),
            "idleSeconds": max(0, int(now - entry.last_seen)),
            "ageSeconds": max(0, int(now - entry.created)),
            "service": str(service.ref) if service else "",
            "rule": f"{rule.namespace}/{rule.policy}" if rule else "",
            "generation": entry.revision,
        }


def maps(tables: Mapping[str, BpfTable], pins: Pins) -> Iterator[Row]:
    """All maps, with their sizes and numbers of entries."""
    for name, table in sorted(tables.items()):
        entries = table.count()
        yield {
            "name": name,
            "id": table.info.id,
            "entries": entries,
            "size": table.max_entries,
            "fill": round(entries / table.max_entries, 4),
            "key": table.spec.key.__name__,
            "value": table.spec.value.__name__,
            "writtenBy": MAPS[name].writer.value,
            "sizeKey": MAPS[name].size.key,
            "whenFull": MAPS[name].full,
            "path": str(pins.map(name)),
        }


def _label_text(names: Names, number: int) -> str:
    if number in names.identities:
        labels = names.identities[number]
        return ",".join([f"ns={labels.namespace}", *(f"{k}={v}" for k, v in labels.labels)])
    if number in names.regions:
        return f"cidr:{names.regions[number]}"
    return f"reserved:{RESERVED_NAMES[number]}" if number in RESERVED_NAMES else ""


def _isolation(isolated: bool) -> str:
    return "isolated" if isolated else "open"


def address_text(address: object, port: int) -> str:
    """ADDRESS:PORT, with brackets for IPv6."""
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _port_range(port: int, bits: int) -> str:
    if bits == 0:
        return "any"
    last = port + (1 << (16 - bits)) - 1
    return str(port) if last == port else f"{port}-{last}"


def _ct_state(key: abi.CtKey, entry: abi.CtEntry, now: int) -> str:
    flags = abi.CtFlag(entry.flags)
    if now - entry.last_seen > ct_lifetime(key.protocol, flags):
        return "expired"
    if flags & abi.CtFlag.RST:
        return "reset"
    if flags & (abi.CtFlag.FIN_FORWARD | abi.CtFlag.FIN_REPLY):
        return "closing"
    return "established" if flags & abi.CtFlag.SEEN_REPLY else "unreplied"
