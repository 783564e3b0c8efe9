"""Routes of pods, and routes to the pod networks of other nodes, which carry our protocol number."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from nodenet.endpoint import IPAddress, IPNetwork
from nodenet.link import netlink
from nodenet.link.handle import Link, LinkError, link_errors
from nodenet.link.netlink import Request

# The protocol number of our routes (rtnetlink(7)); `ip route show proto 110` lists them.
PROTOCOL = 110
_MAIN_TABLE = 254
_UNICAST = 1
_STATIC = 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_HEADER = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 8, 15
_RTA_MULTIPATH = 9
# struct rtnexthop: length, flags, weight, interface; attributes follow.
_NEXT_HOP = struct.Struct("=HBBi")
# RTAX_MTU and RTAX_ADVMSS, with the names of the CNI specification.
_METRICS = {"mtu": 2, "advmss": 8}
# A cached route that the kernel derived from another one for a single destination.
_CLONED = 0x200
# The kernel's default metric of an IPv6 route.
_V6_METRIC = 1024


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route. `gateway` None: on-link."""

    network: IPNetwork
    gateway: IPAddress | None
    ifindex: int
    protocol: int
    metric: int


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The outcome of `sync_routes`. `conflicts`: desired networks for which another program has a route with the
    same metric. `failed`: networks whose route the kernel refused to add, change or remove, with its error message."""

    added: list[IPNetwork] = field(default_factory=list)
    changed: list[IPNetwork] = field(default_factory=list)
    removed: list[IPNetwork] = field(default_factory=list)
    conflicts: list[IPNetwork] = field(default_factory=list)
    failed: dict[IPNetwork, str] = field(default_factory=dict)


def list_routes(link: Link, table: int | None = _MAIN_TABLE) -> list[Route]:
    """All unicast routes of a table (None: of all tables), both families. A route with several next hops is returned
    once per hop."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with link_errors("cannot list routes"):
            bodies = link.kernel.dump(_GETROUTE, _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        found += [route for body in bodies for route in _routes(body, table)]
    return found


def add(link: Link, ifindex: int, network: IPNetwork, gateway: IPAddress | None, **attributes: Any) -> None:
    """Add a route. LinkError: EEXIST if it exists, ENETUNREACH (EHOSTUNREACH for IPv6) if the gateway is not
    on-link."""
    with link_errors(f"cannot add route to {network}" + (f" via {gateway}" if gateway else "")):
        link.kernel.run(add_request(ifindex, network, gateway, **attributes))


def add_request(ifindex: int, network: IPNetwork, gateway: IPAddress | None, **attributes: Any) -> Request:
    """The request of `add`, for a batch. Attributes: proto, priority, table, scope, metrics (mtu, advmss)."""
    return Request(_NEWROUTE, _body(ifindex, network, gateway, **attributes), netlink.CREATE | netlink.EXCL)


def append_request(ifindex: int, network: IPNetwork, gateway: IPAddress | None, **attributes: Any) -> Request:
    """Like `add_request`, but allowed if another interface has a route to the network. The kernel inserts an IPv4 route
    before the others, and merges IPv6 routes into one with several next hops. EEXIST only for an identical route."""
    return Request(_NEWROUTE, _body(ifindex, network, gateway, **attributes), netlink.CREATE)


def sync_routes(
    link: Link, desired: Mapping[IPNetwork, IPAddress], device: str | int, protocol: int = PROTOCOL
) -> SyncResult:
    """Make the routes with `protocol` equal to `desired` (network to gateway, on `device`).

    Routes of other programs are never changed or removed: if one conflicts, the network is listed in `conflicts`. If
    the kernel rejects a route (an unreachable gateway), the network is listed in `failed`, and the others are still
    processed. Raises LinkError if the device does not exist or the routes cannot be listed.
    """
    ifindex = link.require(device).index
    result = SyncResult()
    routes = list_routes(link)
    ours = {route.network: route for route in routes if route.protocol == protocol}
    others = {(route.network, route.metric) for route in routes if route.protocol != protocol}
    for network, route in ours.items():
        if network not in desired:
            with _collect_failure(result, network):
                _delete(link, route)
                result.removed.append(network)
    for network, gateway in desired.items():
        have = ours.get(network)
        if have and (have.gateway, have.ifindex) == (gateway, ifindex):
            continue
        if not have and (network, _V6_METRIC if network.version == 6 else 0) in others:
            result.conflicts.append(network)
            continue
        with _collect_failure(result, network):
            if have:
                _replace(link, ifindex, network, gateway, protocol)
                result.changed.append(network)
            else:
                add(link, ifindex, network, gateway, proto=protocol)
                result.added.append(network)
    return result


def remove_ours() -> None:
    """Remove all routes with our protocol number from this namespace. Raises LinkError."""
    with Link() as link:
        for route in list_routes(link):
            if route.protocol == PROTOCOL:
                _delete(link, route)


@contextmanager
def _collect_failure(result: SyncResult, network: IPNetwork) -> Iterator[None]:
    try:
        yield
    except LinkError as error:
        result.failed[network] = str(error)


def _replace(link: Link, ifindex: int, network: IPNetwork, gateway: IPAddress, protocol: int) -> None:
    with link_errors(f"cannot change route to {network} via {gateway}"):
        body = _body(ifindex, network, gateway, proto=protocol)
        link.kernel.run(Request(_NEWROUTE, body, netlink.CREATE | netlink.REPLACE))


def _delete(link: Link, route: Route) -> None:
    try:
        with link_errors(f"cannot remove route to {route.network}"):
            body = _body(route.ifindex, route.network, route.gateway, proto=route.protocol)
            link.kernel.run(Request(_DELROUTE, body))
    except LinkError as error:
        if error.code != errno.ESRCH:
            raise


def _body(
    ifindex: int,
    network: IPNetwork,
    gateway: IPAddress | None,
    *,
    proto: int = _STATIC,
    scope: int | None = None,
    table: int = _MAIN_TABLE,
    priority: int = 0,
    metrics: Mapping[str, int] | None = None,
) -> bytes:
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    if scope is None:
        scope = _SCOPE_LINK if gateway is None else _SCOPE_UNIVERSE
    # The header field holds table numbers up to 255; a larger one is only in the attribute.
    low = table if table < 256 else 0
    body = _HEADER.pack(family, network.prefixlen, 0, 0, low, proto, scope, _UNICAST, 0)
    body += netlink.attribute(_RTA_DST, network.network_address.packed) if network.prefixlen else b""
    body += netlink.u32(_RTA_OIF, ifindex) + netlink.u32(_RTA_TABLE, table)
    if gateway is not None:
        body += netlink.attribute(_RTA_GATEWAY, gateway.packed)
    if priority:
        body += netlink.u32(_RTA_PRIORITY, priority)
    if metrics:
        body += netlink.nested(_RTA_METRICS, *(netlink.u32(_METRICS[name], value) for name, value in metrics.items()))
    return body


def _routes(body: bytes, wanted: int | None) -> Iterator[Route]:
    """The routes of one message; none if it is not a unicast route of the wanted table."""
    family, prefixlen, _, _, table, protocol, _, kind, flags = _HEADER.unpack_from(body)
    found = netlink.attributes(body, _HEADER.size)
    if wanted not in (None, netlink.number(found, _RTA_TABLE) or table) or kind != _UNICAST or flags & _CLONED:
        return
    network = IPv6Network if family == socket.AF_INET6 else IPv4Network
    packed = found.get(_RTA_DST) or bytes(16 if family == socket.AF_INET6 else 4)
    hops = [(netlink.number(found, _RTA_OIF), found.get(_RTA_GATEWAY))]
    for ifindex, gateway in _next_hops(found[_RTA_MULTIPATH]) if _RTA_MULTIPATH in found else hops:
        yield Route(
            network=network((packed, prefixlen)),
            gateway=ip_address(gateway) if gateway else None,
            ifindex=ifindex,
            protocol=protocol,
            metric=netlink.number(found, _RTA_PRIORITY),
        )


def _next_hops(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    offset = 0
    while offset + _NEXT_HOP.size <= len(data):
        length, _, _, ifindex = _NEXT_HOP.unpack_from(data, offset)
        if length < _NEXT_HOP.size:
            return
        yield ifindex, netlink.attributes(data[offset : offset + length], _NEXT_HOP.size).get(_RTA_GATEWAY)
        offset += (length + 3) & ~3
