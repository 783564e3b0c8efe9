"""Allocates cluster addresses and node ports of Services (KEP-3070 for the bands).

`assign` only computes; `record` stores what a Service holds. So a refused or dry-run request allocates nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import Any

from netpolicy.addresses import parse_address
from nodenet.lab.apiserver.status import Cause, invalid
from nodenet.model import IPNetwork

Obj = dict[str, Any]
Ref = tuple[str, str]
NODE_PORTS = range(30000, 32768)
_FAMILY = {4: "IPv4", 6: "IPv6"}
_OWN_FIELDS = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


class ServiceAddresses:
    """`cidrs`: one network, or one of each family, the primary one first. Raises ValueError for anything else."""

    def __init__(self, cidrs: Sequence[str], node_ports: range = NODE_PORTS) -> None:
        networks = [ip_network(cidr) for cidr in cidrs]
        self._networks: dict[str, IPNetwork] = {_FAMILY[network.version]: network for network in networks}
        if not networks or len(self._networks) != len(networks):
            raise ValueError(f"service CIDRs: expected one network of each family, got {list(cidrs)}")
        self._node_ports = node_ports
        self._by_ip: dict[str, Ref] = {}
        self._by_port: dict[int, Ref] = {}
        self._held: dict[Ref, tuple[list[str], list[int]]] = {}

    @property
    def families(self) -> tuple[str, ...]:
        """The cluster's families, the primary one first."""
        return tuple(self._networks)

    def first(self, family: str) -> str:
        """The first address of the family's network, for the `kubernetes` Service."""
        return str(self._networks[family][1])

    def record(self, ref: Ref, spec: Obj | None) -> None:
        """Record the addresses and ports of the Service `ref`. `spec` None releases them."""
        addresses, ports = self._held.pop(ref, ([], []))
        for address in addresses:
            del self._by_ip[address]
        for port in ports:
            del self._by_port[port]
        if spec is None:
            return
        addresses = [ip for ip in spec.get("clusterIPs") or () if ip != "None"]
        # One Service may use a node port for TCP and for UDP.
        ports = sorted(set(_ports_of(spec)))
        self._held[ref] = (addresses, ports)
        self._by_ip.update(dict.fromkeys(addresses, ref))
        self._by_port.update(dict.fromkeys(ports, ref))

    def assign(self, ref: Ref, spec: Obj, old: Obj | None) -> list[Cause]:
        """Complete a valid Service spec in place; `old` is the stored one. Returns what cannot be allocated."""
        if spec["type"] == "ExternalName":
            for key in _OWN_FIELDS:
                spec.pop(key, None)
            return []
        if old is not None:
            _keep(spec, old)
        found = self._families(spec, old)
        if not found and spec.get("clusterIP") != "None":
            found = self._cluster_ips(ref, spec, old)
        if not found:
            found = self._assign_ports(ref, spec)
        return found

    def _families(self, spec: Obj, old: Obj | None) -> list[Cause]:
        given = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP", "")] if ip and ip != "None"]
        families = list(spec.get("ipFamilies") or [_FAMILY[parse_address(ip).version] for ip in given])
        if spec.get("clusterIP") == "None" and not spec.get("selector"):
            # Without a selector the families of the endpoints are unknown, so the API allows both, even in a
            # single-stack cluster.
            policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack")
            families = families or [self.families[0]]
            spec["ipFamilies"] = families if policy == "SingleStack" else [*families, *_missing(families)]
            spec["clusterIPs"] = ["None"]
            return []
        wanted = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(families) > 1 else "SingleStack")
        families = families or [self.families[0]]
        for index, family in enumerate(families):
            if family not in self._networks:
                return [invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")]
        if wanted == "RequireDualStack" and len(self.families) < 2:
            message = "this cluster is not configured for dual-stack services"
            return [invalid("spec.ipFamilyPolicy", wanted, message)]
        if wanted == "SingleStack" and len(families) > 1:
            if old is None:
                return [
                    invalid(
                        "spec.ipFamilyPolicy", wanted, "must be RequireDualStack or PreferDualStack for two ipFamilies"
                    )
                ]
            families = families[:1]
        if wanted != "SingleStack":
            families += [family for family in self.families if family not in families]
        spec["ipFamilies"] = families
        if spec.get("clusterIP") == "None":
            spec["clusterIPs"] = ["None"]
        return []

    def _cluster_ips(self, ref: Ref, spec: Obj, old: Obj | None) -> list[Cause]:
        given = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []))
        chosen: list[str] = []
        for index, family in enumerate(spec["ipFamilies"]):
            network = self._networks[family]
            if index < len(given):
                address = parse_address(given[index])
                owner = self._by_ip.get(str(address), ref)
                if address not in network:
                    message = f"provided IP is not in the valid range. The range of valid IPs is {network}"
                    return [invalid("spec.clusterIPs", given, f"failed to allocate IP {address}: {message}")]
                if owner != ref:
                    message = f"failed to allocate IP {address}: provided IP is already allocated to {'/'.join(owner)}"
                    return [invalid("spec.clusterIPs", given, message)]
                chosen.append(str(address))
            elif (free := self._free(ref, network)) is not None:
                chosen.append(free)
            else:
                return [invalid("spec.clusterIPs", given, f"failed to allocate a serviceIP: range {network} is full")]
        spec["clusterIP"], spec["clusterIPs"] = chosen[0], chosen
        return []

    def _free(self, ref: Ref, network: IPNetwork) -> str | None:
        for offset in _candidates(ref, network):
            address = str(network[offset])
            if address not in self._by_ip:
                return address
        return None

    def _assign_ports(self, ref: Ref, spec: Obj) -> list[Cause]:
        if spec["type"] not in ("NodePort", "LoadBalancer"):
            spec.pop("healthCheckNodePort", None)
            return []
        taken = {port for port, owner in self._by_port.items() if owner != ref}
        for index, port in enumerate(spec.get("ports") or ()):
            wanted = port.get("nodePort")
            if wanted and wanted not in self._node_ports:
                message = f"provided port is not in the valid range. The range of valid ports is {self._range()}"
                return [invalid(f"spec.ports[{index}].nodePort", wanted, message)]
            if wanted in taken:
                message = f"provided port is already allocated to {'/'.join(self._by_port[wanted])}"
                return [invalid(f"spec.ports[{index}].nodePort", wanted, message)]
        taken |= set(_ports_of(spec))
        wants = spec["type"] == "NodePort" or spec.get("allocateLoadBalancerNodePorts", True)
        missing = [port for port in spec.get("ports") or () if wants and not port.get("nodePort")]
        for port in missing:
            port["nodePort"] = self._free_port(ref, f"{port.get('protocol')}/{port.get('port')}", taken)
        local = spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
        if local and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = self._free_port(ref, "health", taken)
        full = any(port["nodePort"] == 0 for port in missing) or spec.get("healthCheckNodePort") == 0
        return [invalid("spec.ports", 0, f"no free node port is left in {self._range()}")] if full else []

    def _free_port(self, ref: Ref, what: str, taken: set[int]) -> int:
        """A free port, or 0 if the range is full."""
        start = _hash(f"{ref[0]}/{ref[1]}/{what}") % len(self._node_ports)
        for step in range(len(self._node_ports)):
            port = self._node_ports[(start + step) % len(self._node_ports)]
            if port not in taken:
                taken.add(port)
                return port
        return 0

    def _range(self) -> str:
        return f"{self._node_ports[0]}-{self._node_ports[-1]}"


def _ports_of(spec: Obj) -> Iterator[int]:
    yield from (port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort"))
    if spec.get("healthCheckNodePort"):
        yield spec["healthCheckNodePort"]


def _missing(families: Sequence[str]) -> list[str]:
    return [family for family in _FAMILY.values() if family not in families]


def _keep(spec: Obj, old: Obj) -> None:
    """Keep the allocated values in an update that does not contain them, as the API does (patchAllocatedValues)."""
    if old["type"] != "ExternalName" and "clusterIP" not in spec and "clusterIPs" not in spec:
        for key in _OWN_FIELDS:
            if key in old:
                spec.setdefault(key, old[key])
        # `assign` then decides how many of the old addresses remain: ipFamilyPolicy may have changed.
        spec["clusterIPs"] = list(old.get("clusterIPs") or ())
        spec["clusterIP"] = old.get("clusterIP", "")
    if {spec["type"], old["type"]} <= {"NodePort", "LoadBalancer"}:
        had = {(port.get("protocol"), port.get("port")): port.get("nodePort") for port in old.get("ports") or ()}
        for port in spec.get("ports") or ():
            kept = had.get((port.get("protocol"), port.get("port")))
            if kept and not port.get("nodePort"):
                port["nodePort"] = kept


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _candidates(ref: Ref, network: IPNetwork) -> Iterator[int]:
    """Offsets to try, starting at one derived from the name. The upper band comes first, because the lower band is for
    addresses that users choose."""
    size = min(network.num_addresses, 1 << 16)
    low = min(max(16, size // 16), 256) if size > 32 else 2
    last = size - 1 if network.version == 4 else size
    upper = max(last - low, 0)
    start = _hash(f"{ref[0]}/{ref[1]}/{network.version}")
    yield from (low + (start + step) % upper for step in range(upper))
    yield from range(2, min(low, last))
