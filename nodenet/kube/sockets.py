"""TCP sockets with keepalive: without it a connection whose peer vanished would stay open for hours."""

from __future__ import annotations

import socket
from typing import Any

# The kernel probes a connection that is idle for 10 s, then every 5 s, and closes it after three probes without an
# answer: after 25 s. client-go needs 45 s (HTTP/2 ping). TCP_USER_TIMEOUT closes the connection after the same time if
# sent data is not acknowledged.
IDLE_SECONDS = 10
INTERVAL_SECONDS = 5
PROBES = 3
DEAD_AFTER_SECONDS = IDLE_SECONDS + INTERVAL_SECONDS * PROBES


def keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for aiohttp's TCPConnector(socket_factory=...). `address` is a result of getaddrinfo."""
    family, kind, protocol = address[:3]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_SECONDS)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_SECONDS * 1000)
    return found
