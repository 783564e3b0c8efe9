"""Rows for `nodenet list`, from one compilation and from the maps. Read-only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from netpolicy.types import RuleRef, Tier
from nodenet import abi
from nodenet.abi.carried import ct_lifetime
from nodenet.bpf.pins import Pins
from nodenet.bpf.rawtable import RawTable
from nodenet.bpf.tables import BpfTable
from nodenet.compile import Names
from nodenet.endpoint import AttachmentKey
from nodenet.engine import Compiled
from nodenet.flow.types import RESERVED_NAMES
from nodenet.model import Direction, ObjectRef, Protocol
from nodenet.tables import MAPS, BpfMap, MapType

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
            "labels": _pod_labels(compiled, endpoint.pod),
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
    """The entries of nn_policy, and a row without a peer for each isolated direction without any allow."""
    names = compiled.names
    opened = set()
    for key, value in compiled.desired.tables.get("nn_policy", {}).items():
        if not abi.RuleDirection(key.direction).is_admin:
            opened.add((key.subject, _direction(key)))
        rule = names.rules.get(value.rule_id)
        bits = key.prefixlen - abi.POLICY_BITS_PROTOCOL
        yield {
            "subject": key.subject,
            "subjectLabels": label_text(names, key.subject),
            "direction": _direction(key).name.lower(),
            "tier": _tier(key, rule),
            "action": value.action.name.lower(),
            "precedence": value.precedence,
            "peer": key.peer,
            "peerLabels": label_text(names, key.peer) if key.peer else "anyone",
            "protocol": Protocol(key.protocol).name if key.protocol else "ANY",
            "ports": _port_range(key.port, bits) if key.protocol else "any",
            "rule": str(rule) if rule else "",
        }
    for subject, directions in names.isolated_by.items():
        for direction, policies in directions.items():
            if (subject, direction) not in opened:
                yield {
                    "subject": subject,
                    "subjectLabels": label_text(names, subject),
                    "direction": Direction(direction).name.lower(),
                    "tier": str(Tier.NETWORK_POLICY),
                    "action": "deny",
                    "precedence": 0,
                    "peer": None,
                    "peerLabels": "nobody",
                    "protocol": "",
                    "ports": "",
                    "rule": ", ".join(f"{p.namespace}/{p.name}" for p in policies),
                }


def _direction(key: abi.PolicyKey) -> Direction:
    place = abi.RuleDirection(key.direction)
    is_ingress = place in (abi.RuleDirection.INGRESS, abi.RuleDirection.ADMIN_INGRESS)
    return Direction.INGRESS if is_ingress else Direction.EGRESS


def _tier(key: abi.PolicyKey, rule: RuleRef | None) -> str:
    if abi.RuleDirection(key.direction).is_admin:
        return str(Tier.ADMIN)
    return str(Tier.BASELINE if rule is not None and not rule.namespace else Tier.NETWORK_POLICY)


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
            "labels": label_text(names, value.value),
        }
    for key, value in compiled.desired.tables.get("nn_cidr", {}).items():
        bits = abi.V4_PREFIX_BITS if key.addr.version == 4 else 0
        yield {
            "ip": f"{key.addr}/{key.prefixlen - bits}",
            "identity": value.value,
            "pod": "",
            "labels": label_text(names, value.value),
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
            "rule": str(rule.owner) if rule else "",
            "generation": entry.revision,
        }


def maps(tables: Mapping[str, BpfTable], pins: Pins) -> Iterator[Row]:
    """All maps, with their sizes and numbers of entries."""
    for name, declared in sorted(MAPS.items()):
        table = tables.get(name) or _opened(name, pins)
        entries = _count(declared, table)
        size = table.max_entries if table is not None else None
        records = declared.records
        yield {
            "name": name,
            "type": declared.type.name.lower(),
            "id": table.info.id if table is not None else None,
            "entries": entries,
            "size": size,
            # An array has all of its entries always.
            "fill": round(entries / size, 4) if size and entries is not None and not declared.is_array else None,
            "key": records.key.__name__ if records else None,
            "value": records.value.__name__ if records else None,
            "writtenBy": declared.writer.value,
            "sizeKey": declared.size.key,
            "whenFull": declared.full,
            "path": str(pins.map(name)),
        }
        if table is not None and name not in tables:
            table.close()


def _opened(name: str, pins: Pins) -> RawTable | None:
    """A map that the agent does not read. None if it is not pinned: no program of this kernel uses it."""
    try:
        return RawTable(name, pins.map(name))
    except OSError:
        return None


def _count(declared: BpfMap, table: RawTable | None) -> int | None:
    """The number of entries; None if it cannot be known: what is stored at sockets, or waits in a queue."""
    if table is None or declared.type in (MapType.SK_STORAGE, MapType.RINGBUF):
        return None
    return table.max_entries if declared.is_array and declared.records is None else table.count()


def label_text(names: Names, number: int) -> str:
    """The labels of an identity, or the network of a region; "" if neither is known."""
    if number in names.identities:
        labels = names.identities[number]
        return ",".join([f"ns={labels.namespace}", *(f"{k}={v}" for k, v in labels.labels)])
    if number in names.regions:
        return f"cidr:{names.regions[number]}"
    return f"reserved:{RESERVED_NAMES[number]}" if number in RESERVED_NAMES else ""


def _pod_labels(compiled: Compiled, ref: ObjectRef) -> list[str]:
    """Empty if the pod is not in the API."""
    pod = compiled.snapshot.pods.get(ref)
    return [f"{key}={value}" for key, value in sorted(pod.labels.items())] if pod is not None else []


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
