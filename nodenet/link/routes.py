"""Routes: a pod's own, and those to the other nodes' pod networks, which carry our protocol number."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from nodenet.link.handle import Link, LinkError, refusing
from nodenet.model import IPAddress, IPNetwork

# "who added it" of rtnetlink(7), as other routing daemons have one; `ip route show proto 110` lists ours.
PROTOCOL = 110
_MAIN_TABLE = 254
_UNICAST = 1
# The metric that the kernel gives an IPv6 route without one.
_V6_METRIC = 1024


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. `gateway` None: on the link."""

    network: IPNetwork
    gateway: IPAddress | None
    ifindex: int
    protocol: int
    metric: int


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What `sync_routes` did. `conflicts`: wanted networks that somebody else's route of the same metric covers."""

    added: list[IPNetwork] = field(default_factory=list)
    changed: list[IPNetwork] = field(default_factory=list)
    removed: list[IPNetwork] = field(default_factory=list)
    conflicts: list[IPNetwork] = field(default_factory=list)


def listed(link: Link) -> list[Route]:
    """Every unicast route of the main table, both families."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with refusing("cannot list routes"):
            messages = link.ip.get_routes(family=family, table=_MAIN_TABLE)
        found += [_route(message) for message in messages if _wanted(message)]
    return found


def add(link: Link, ifindex: int, network: IPNetwork, gateway: IPAddress | None, **attributes: Any) -> None:
    """Add a route. A gateway outside the interface's networks is taken as on the link. LinkError (EEXIST) if taken."""
    with refusing(f"cannot add route to {network}" + (f" via {gateway}" if gateway else "")):
        link.ip.route("add", **_spec(network, gateway, ifindex), **attributes)


def sync_routes(
    link: Link, desired: Mapping[IPNetwork, IPAddress], device: str | int, protocol: int = PROTOCOL
) -> SyncResult:
    """Make the routes that carry `protocol` be exactly `desired` (network to gateway, over `device`).

    Routes of others are never changed or removed: where one stands in the way, the network is named in `conflicts`.
    Raises LinkError when the device is missing or the kernel refuses a route (a gateway that cannot be reached).
    """
    ifindex = link.require(device).index
    result = SyncResult()
    routes = listed(link)
    ours = {route.network: route for route in routes if route.protocol == protocol}
    others = {(route.network, route.metric) for route in routes if route.protocol != protocol}
    for network, route in ours.items():
        if network not in desired:
            _delete(link, route)
            result.removed.append(network)
    for network, gateway in desired.items():
        have = ours.get(network)
        if have and (have.gateway, have.ifindex) == (gateway, ifindex):
            continue
        if have:
            with refusing(f"cannot change route to {network} via {gateway}"):
                link.ip.route("replace", **_spec(network, gateway, ifindex), proto=protocol)
            result.changed.append(network)
        elif (network, _V6_METRIC if network.version == 6 else 0) in others:
            result.conflicts.append(network)
        else:
            add(link, ifindex, network, gateway, proto=protocol)
            result.added.append(network)
    return result


def _delete(link: Link, route: Route) -> None:
    try:
        with refusing(f"cannot remove route to {route.network}"):
            link.ip.route("del", **_spec(route.network, route.gateway, route.ifindex), proto=route.protocol)
    except LinkError as error:
        if error.code != errno.ESRCH:
            raise


def _spec(network: IPNetwork, gateway: IPAddress | None, ifindex: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "family": socket.AF_INET6 if network.version == 6 else socket.AF_INET,
        "dst": str(network),
        "oif": ifindex,
        "table": _MAIN_TABLE,
    }
    if gateway is not None:
        spec["gateway"] = str(gateway)
    else:
        spec["scope"] = "link"
    return spec


def _wanted(message: Any) -> bool:
    table = message.get_attr("RTA_TABLE") or message["table"]
    return bool(table == _MAIN_TABLE and message["type"] == _UNICAST)


def _route(message: Any) -> Route:
    anywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    gateway = message.get_attr("RTA_GATEWAY")
    return Route(
        network=ip_network(f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}"),
        gateway=ip_address(gateway) if gateway else None,
        ifindex=message.get_attr("RTA_OIF") or 0,
        protocol=message["proto"],
        metric=message.get_attr("RTA_PRIORITY") or 0,
    )
