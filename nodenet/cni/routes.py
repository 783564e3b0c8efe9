"""The `routes` of an ipam section."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from nodenet.endpoint import IPAddress, IPNetwork

# Numeric fields of a 1.1.0 route (SPEC.md 1.1.0, "Success") and their maximum values.
_NUMBERS = {"mtu": 65535, "advmss": 65535, "priority": 2**32 - 1, "table": 2**32 - 1, "scope": 255}


@dataclass(frozen=True, slots=True)
class PodRoute:
    """A route in the pod. `gateway` None: the gateway of the pod's address. Numbers are None if not configured."""

    network: IPNetwork
    gateway: IPAddress | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


def routes(value: Any) -> tuple[PodRoute, ...]:
    """Read `ipam.routes`. Raises ValueError that names the entry and its key."""
    if not isinstance(value, list):
        raise ValueError("expected a list of routes")
    return tuple(_route(f"[{index}]", item) for index, item in enumerate(value))


def _route(where: str, item: Any) -> PodRoute:
    if not isinstance(item, dict) or not isinstance(item.get("dst"), str):
        raise ValueError(f"{where}.dst: expected a network like 0.0.0.0/0")
    try:
        network = ip_network(item["dst"], strict=False)
        gateway = ip_address(item["gw"]) if item.get("gw") else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if gateway is not None and gateway.version != network.version:
        raise ValueError(f"{where}.gw: {gateway} is not of the family of {network}")
    numbers: dict[str, int] = {}
    for name, most in _NUMBERS.items():
        number = item.get(name)
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
            raise ValueError(f"{where}.{name}: expected 0-{most}")
        numbers[name] = number
    return PodRoute(network, gateway, **numbers)
