"""The interface that leads to the other nodes, and what changes it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from nodenet.endpoint import IPAddress
from nodenet.link import addresses, routes
from nodenet.link.handle import Interface, Link
from nodenet.link.netlink import Listener

# linux/rtnetlink.h
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
# struct rtmsg: family, destination length, source length, tos, table, protocol
_ROUTE = struct.Struct("=BBBBBB")
_INDEX = struct.Struct("=xxxxi")
# The kernel gives this index to `lo` of every namespace (net/flow.h).
_LOOPBACK = 1


def find(link: Link, name: str, own: Iterable[IPAddress]) -> Interface | None:
    """The interface with this name. With "": the one that has one of the node's own addresses, or else that of the
    default route with the lowest metric. Never the loopback: a routed node may have its address there. None if there is
    none. Raises LinkError."""
    if name:
        return link.get(name)
    if indexes := _indexes(link, own):
        return link.get(indexes[0])
    defaults = _default_routes(link)
    # An IPv4 route counts before an IPv6 one, because the metrics of both families have different defaults.
    best = min(defaults, key=lambda route: (route.network.version, route.metric), default=None)
    return link.get(best.ifindex) if best else None


def find_all(
    link: Link, name: str, own: Iterable[IPAddress], is_served: Callable[[IPAddress], bool] = lambda _: False
) -> list[Interface]:
    """All interfaces on which traffic from outside reaches the node, or on which its answers leave: those that have one
    of the node's own addresses or another one that is served, and those of default routes, with all next hops. With a
    name only that one. Raises LinkError.

    A bridge counts only for the node's own addresses and default routes: others may be bridges of pods. A dummy
    receives no traffic."""
    if name:
        return [found] if (found := link.get(name)) is not None else []
    sure = dict.fromkeys([*_indexes(link, own), *(route.ifindex for route in _default_routes(link))])
    served = dict.fromkeys(entry.ifindex for entry in addresses.local(link) if is_served(entry.ip))
    seen = [link.get(index) for index in {**sure, **served} if index != _LOOPBACK]
    return [one for one in seen if one is not None and (one.index in sure or one.kind not in ("bridge", "dummy"))]


def without(link: Link, reached: Iterable[int], is_served: Callable[[IPAddress], bool]) -> list[tuple[str, IPAddress]]:
    """The interfaces other than `reached` (indexes) that have served addresses, with one of these each. Those of the
    loopback and of dummies are reached through other interfaces."""
    skipped = {*reached, _LOOPBACK}
    those = {entry.ifindex: entry.ip for entry in addresses.local(link) if is_served(entry.ip)}
    found = ((link.get(index), address) for index, address in those.items() if index not in skipped)
    return [(one.name, address) for one, address in found if one is not None and one.kind != "dummy"]


def _default_routes(link: Link) -> list[routes.Route]:
    return [route for route in routes.list_routes(link) if not route.network.prefixlen]


def _indexes(link: Link, own: Iterable[IPAddress]) -> list[int]:
    """The interfaces with one of these addresses, each once, without the loopback."""
    wanted = frozenset(own)
    having = (entry.ifindex for entry in addresses.local(link) if entry.ip in wanted)
    return [index for index in dict.fromkeys(having) if index != _LOOPBACK]


def changes() -> Listener:
    """Notifies of changes to links, addresses and routes of the current namespace. `concerns` selects those that
    matter."""
    return Listener(_RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE)


def concerns(kind: int, body: bytes, uplink: int) -> bool:
    """True if a notification may be about the uplink (its index; 0: none is known), about a default route, or about a
    removed route of ours. Interfaces and routes of pods come and go all the time, and do not count."""
    if kind in (_NEWLINK, _DELLINK):
        return not uplink or _INDEX.unpack_from(body)[0] == uplink
    if kind in (_NEWADDR, _DELADDR):
        return not uplink or _INDEX.unpack_from(body)[0] == uplink
    if kind in (_NEWROUTE, _DELROUTE):
        _, prefixlen, _, _, _, protocol = _ROUTE.unpack_from(body)
        return not prefixlen or (kind == _DELROUTE and protocol == routes.PROTOCOL)
    return False
