"""TCP sockets that notice a peer that is gone: without this a connection that dies silently stays open for hours."""

from __future__ import annotations

import socket
from typing import Any

# An idle connection is probed after 10 s, then every 5 s; three probes without an answer end it: 25 s. client-go
# notices after 45 s (its HTTP/2 ping). TCP_USER_TIMEOUT does the same for data that is not acknowledged.
IDLE_SECONDS = 10
INTERVAL_SECONDS = 5
PROBES = 3
DEAD_AFTER_SECONDS = IDLE_SECONDS + INTERVAL_SECONDS * PROBES


def watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """For aiohttp's TCPConnector(socket_factory=...); `address` is one that getaddrinfo gave."""
    family, kind, protocol = address[:3]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_SECONDS * 1000)
    return found
