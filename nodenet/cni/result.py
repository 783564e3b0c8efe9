"""The result that ADD prints, in all supported versions of the specification."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodenet.cni.ipam import Lease
from nodenet.cni.routes import PodRoute


@dataclass(frozen=True, slots=True)
class ResultInterface:
    """An interface that ADD created or used. `sandbox` is "" on the node. `mtu` is printed only in version 1.1.0."""

    name: str
    mac: str
    sandbox: str = ""
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of ADD. `pod_interface` is the index in `interfaces` of the interface with the addresses."""

    interfaces: Sequence[ResultInterface]
    pod_interface: int
    leases: Sequence[Lease]
    routes: Sequence[PodRoute]
    dns: Mapping[str, Any]
    # The unchanged result of the previous plugins of the chain.
    before: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, version: str) -> str:
        """The success object of SPEC.md in `version`, one of conf.SUPPORTED_VERSIONS."""
        before = {key: list(self.before.get(key) or ()) for key in ("interfaces", "ips", "routes")}
        shift = len(before["interfaces"])
        body = {
            "cniVersion": version,
            "interfaces": before["interfaces"] + [_interface(entry, version) for entry in self.interfaces],
            "ips": before["ips"] + [self._ip(lease, version, shift) for lease in self.leases],
            "routes": before["routes"] + [_route(route, version) for route in self.routes],
            "dns": dict(self.dns or self.before.get("dns") or {}),
        }
        return json.dumps(body, indent=2)

    def _ip(self, lease: Lease, version: str, shift: int) -> dict[str, Any]:
        body: dict[str, Any] = {}
        if version in ("0.3.1", "0.4.0"):
            body["version"] = str(lease.address.version)
        body |= {"interface": self.pod_interface + shift, "address": str(lease.address)}
        return body | ({"gateway": str(lease.gateway)} if lease.gateway else {})


def _interface(entry: ResultInterface, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"name": entry.name, "mac": entry.mac}
    if entry.mtu and version == "1.1.0":
        body["mtu"] = entry.mtu
    if entry.sandbox:
        body["sandbox"] = entry.sandbox
    return body


def _route(route: PodRoute, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"dst": str(route.network)}
    if route.gateway is not None:
        body["gw"] = str(route.gateway)
    if version == "1.1.0":
        for name in ("mtu", "advmss", "priority", "table", "scope"):
            if (number := getattr(route, name)) is not None:
                body[name] = number
    return body
