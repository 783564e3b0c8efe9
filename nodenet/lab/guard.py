"""Who may use the lab's API from the host: root and the user who runs the lab, told by the owner of the TCP socket.

A client of the API decides what runs inside pods as root, so other users of the machine must be kept out. kubectl sends
no token over plain HTTP; on the loopback interface the kernel itself knows who is at the other end.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from nodenet.lab.apiserver.server import ApiServer

_LOOPBACK = "127.0.0.1"
_TCP = Path("/proc/net/tcp")


class GuardedApi(ApiServer):
    """An ApiServer that answers others on 127.0.0.1 with 403. The fabric is reached from the lab's namespaces alone."""

    def app(self) -> web.Application:
        app = super().app()
        app.middlewares.append(_only_owner)
        return app


@web.middleware
async def _only_owner(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    own = transport.get_extra_info("sockname") if transport is not None else None
    if own is not None and own[0] == _LOOPBACK and (peer is None or not _allowed(peer, own)):
        message = "only root and the user who started this lab may use its API"
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403}
        return web.json_response(status | {"metadata": {}, "message": message}, status=403)
    return await handler(request)


def _allowed(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    return socket_owner(peer, own, _TCP.read_text()) in (0, os.getuid())


def socket_owner(local: tuple[str, int], remote: tuple[str, int], table: str) -> int | None:
    """The uid of the IPv4 socket with these ends in a /proc/net/tcp, or None."""
    wanted = [_hex(local), _hex(remote)]
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == wanted:
            return int(fields[7])
    return None


def _hex(end: tuple[str, int]) -> str:
    """As /proc/net/tcp writes an address: the 32 bits as a number of this machine, then the port."""
    (number,) = struct.unpack("=I", socket.inet_aton(end[0]))
    return f"{number:08X}:{end[1]:04X}"
