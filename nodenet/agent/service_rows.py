"""The answer to `nodenet service list`: frontends as the datapath has them, with the fields that made them so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nodenet import abi
from nodenet.agent.rows import address_text
from nodenet.compile.services import FrontendKind, kind_of
from nodenet.compile.state import ServicePortName
from nodenet.engine import Compiled
from nodenet.model import IPAddress, ObjectRef, Protocol
from nodenet.store import Snapshot

_NAMES = {
    FrontendKind.CLUSTER_IP: "ClusterIP",
    FrontendKind.NODE_PORT: "NodePort",
    FrontendKind.LOAD_BALANCER: "LoadBalancer",
    FrontendKind.HOST_PORT: "HostPort",
    FrontendKind.EXTERNAL_IP: "ExternalIP",
}


# Only the pod itself serves it.
_HOST_PORT = {"type": _NAMES[FrontendKind.HOST_PORT], "trafficPolicy": "Local"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Flows by service_id. `now`: live ones, as last counted. `opened`: since the agent's start; None: allowed flows
    are not reported. `dropped`: packets and calls, since then too."""

    now: Mapping[int, int] = field(default_factory=dict)
    opened: Mapping[int, int] | None = field(default_factory=dict)
    dropped: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traffic:
    """`inside`: of this node's pods and processes. `outside`: from outside."""

    inside: Counts = Counts()
    outside: Counts = Counts()

    def of(self, number: int, scope: str) -> dict[str, int | None]:
        """The counters of one address, for the traffic of this scope (`scope_of`)."""
        parts = [self.inside] if scope != "external" else []
        parts += [self.outside] if scope in ("external", "all") else []
        opened = [None if part.opened is None else part.opened.get(number, 0) for part in parts]
        known = [count for count in opened if count is not None]
        return {
            "flows": sum(part.now.get(number, 0) for part in parts),
            "opened": sum(known) if len(known) == len(opened) else None,
            "dropped": sum(part.dropped.get(number, 0) for part in parts),
        }


def services(compiled: Compiled, traffic: Traffic, only: str = "") -> Iterator[dict[str, Any]]:
    """One row per Service port and address, and per hostPort and address, with the backends among which the datapath
    chooses now. `scope`: whose traffic uses it (`scope_of`). `terminating`: the backends that are used because none is
    ready. `onlyElsewhere`: no backend, because the traffic policy is Local and only other nodes have endpoints. `only`:
    as in `is_meant`."""
    tables = compiled.desired.tables
    frontends, backends = tables.get("nn_frontend", {}), tables.get("nn_backend", {})
    wanted = {number: name for number, name in compiled.names.services.items() if is_meant(name.ref, only)}
    ready = _ready(compiled.snapshot)
    warnings: dict[str, list[str]] = defaultdict(list)
    for warning in compiled.names.warnings:
        warnings[f"{warning.kind} {warning.ref}"].append(warning.message)
    for key, entry in frontends.items():
        name = wanted.get(entry.service_id)
        if key.slot or (only and name is None):
            continue
        pod = compiled.names.host_ports.get(entry.service_id)
        owner = f"Service {name.ref}" if name else f"Pod {pod.ref}" if pod else ""
        slots = (frontends.get(key._replace(slot=slot)) for slot in range(1, entry.backends + 1))
        found = [backends.get(abi.U32(slot.backend_id)) for slot in slots if slot]
        targets = [(target.addr, target.port) for target in found if target]
        yield {
            "id": entry.service_id,
            "service": owner.removeprefix("Service "),
            "port": name.name if name else "",
            **(_HOST_PORT if pod else _fields(compiled, name, key.addr, scope_of(key, entry))),
            "scope": scope_of(key, entry),
            "frontend": address_text(key.addr, key.port),
            "protocol": Protocol(key.protocol).name,
            "backends": [address_text(*target) for target in targets],
            "terminating": [address_text(*t) for t in targets if name and (name.ref, t[0]) not in ready],
            "affinitySeconds": entry.affinity_seconds,
            "onlyElsewhere": bool(entry.flags & abi.FrontendFlag.ONLY_ELSEWHERE),
            **traffic.of(entry.service_id, scope_of(key, entry)),
            "notServed": warnings.get(owner, []),
        }


def is_meant(ref: ObjectRef, only: str) -> bool:
    """Whether a user who wrote `only` means this Service: NAMESPACE/NAME, or NAME in any namespace. "": all."""
    return not only or only in (str(ref), ref.name)


def scope_of(key: abi.FrontendKey, entry: abi.FrontendEntry) -> str:
    """Whose traffic uses a master entry: external (from outside), internal (of this node's pods and processes), all, or
    node (only of its processes)."""
    if key.scope == abi.FrontendScope.EXTERNAL:
        return "external"
    if entry.flags & abi.FrontendFlag.NODE_ONLY:
        return "node"
    return "internal" if entry.flags & abi.FrontendFlag.HAS_EXTERNAL else "all"


def _fields(compiled: Compiled, name: ServicePortName | None, address: IPAddress, scope: str) -> Mapping[str, str]:
    """What gave the Service this address, and the traffic policy for it. Empty if the Service was just deleted.
    externalTrafficPolicy is for traffic from outside."""
    service = compiled.snapshot.services.get(name.ref) if name else None
    if service is None:
        return {"type": "", "trafficPolicy": ""}
    kind = kind_of(service, address)
    local = (
        service.internal_local if kind is FrontendKind.CLUSTER_IP else service.external_local and scope != "internal"
    )
    return {"type": _NAMES[kind], "trafficPolicy": "Local" if local else "Cluster"}


def _ready(snapshot: Snapshot) -> set[tuple[ObjectRef, IPAddress]]:
    """The ready endpoints of each Service."""
    return {
        (slice_.service, endpoint.addresses[0])
        for slice_ in snapshot.slices.values()
        for endpoint in slice_.endpoints
        if endpoint.ready and endpoint.addresses
    }
