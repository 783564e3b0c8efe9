"""Turns on the forwarding of packets between interfaces."""

from __future__ import annotations

from nodenet.link import routes, sysctl
from nodenet.link.handle import Link

_V4, _V6 = "ipv4/ip_forward", "ipv6/conf/all/forwarding"
# linux/rtnetlink.h: a route that the kernel learned from a router advertisement.
_RTPROT_RA = 9
# ip-sysctl.rst, accept_ra: 1: only while the host does not forward; 2: always.
_UNLESS_FORWARDING, _ALWAYS = "1", 2


def enable(link: Link, version: int) -> None:
    """Forward packets of an IP version. Does nothing if it is on. Raises OSError, LinkError.

    With IPv6 forwarding the kernel deletes default routes that it learned from router advertisements, and takes no
    more of them. Interfaces with such a route must keep them: so they take advertisements in any case, and this is set
    before forwarding.
    """
    key = _V4 if version == 4 else _V6
    if sysctl.read(key) == "1":
        return
    if version == 6:
        _keep_advertisements(link)
    sysctl.write(key, 1)


def _keep_advertisements(link: Link) -> None:
    indexes = {route.ifindex for route in routes.list_routes(link) if route.protocol == _RTPROT_RA}
    for index in indexes:
        interface = link.get(index)
        if interface is None:
            continue
        key = f"ipv6/conf/{interface.name}/accept_ra"
        if sysctl.read(key) == _UNLESS_FORWARDING:
            sysctl.write(key, _ALWAYS)
