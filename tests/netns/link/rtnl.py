"""A second tool's view of a namespace's links: pyroute2."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from nodenet.link import netns


@contextmanager
def rtnl(namespace: str) -> Iterator[IPRoute]:
    """pyroute2 in the namespace of that name."""
    own = netns.open_socket(namespace, socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    with IPRoute(fileno=own.detach()) as ip:
        yield ip


def qdiscs(namespace: str, ifindex: int) -> list[str]:
    """The queueing disciplines of an interface, by kind."""
    with rtnl(namespace) as ip:
        return [qdisc.get_attr("TCA_KIND") for qdisc in ip.get_qdiscs(index=ifindex)]
