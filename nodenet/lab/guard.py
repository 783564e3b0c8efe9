"""Decides who may use a lab's API: on the loopback interface root and the user who runs the lab, elsewhere the clients
with a token.

An API client can make pods run commands as root, so other users of the machine must have no access. Nor must processes
inside pods, which can reach the fabric. kubectl sends no token over plain HTTP; on the loopback interface the kernel
tells the owner of the client's socket instead.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from nodenet.kinds import API_KINDS, CLUSTER_NETWORK_POLICY, NODE
from nodenet.lab import cluster_dns
from nodenet.lab.apiserver.access import ADMIN, Access, User, reader
from nodenet.lab.apiserver.status import ApiError

_LOOPBACK = "127.0.0.1"
_EVENT = "Event"
_TCP = Path("/proc/net/tcp")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The bearer tokens of one lab: the administrator's, by node the agent's, and the DNS server's. Each start of a lab
    has new ones."""

    admin: str
    agents: dict[str, str]
    dns: str

    def users(self) -> dict[str, User]:
        """Users by token. An agent may read the kinds that agents watch, patch Nodes and
        ClusterNetworkPolicies, create and patch Events, and write nothing else."""
        kinds = [kind.name for kind in API_KINDS]
        agents = {
            token: reader(f"nodenet-agent:{node}", kinds, [NODE.name, CLUSTER_NETWORK_POLICY.name, _EVENT], [_EVENT])
            for node, token in self.agents.items()
        }
        return {self.admin: ADMIN, self.dns: reader("nodenet-dns", cluster_dns.KINDS)} | agents


def new_tokens(nodes: Iterable[str]) -> Tokens:
    agents = {node: secrets.token_urlsafe(32) for node in nodes}
    return Tokens(secrets.token_urlsafe(32), agents, secrets.token_urlsafe(32))


class LabAccess(Access):
    """On 127.0.0.1 the owner of the client's socket decides, and a valid token is accepted too. All others get 403."""

    def user(self, request: web.Request) -> User:
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        own = transport.get_extra_info("sockname") if transport is not None else None
        if own is None or own[0] != _LOOPBACK:
            return super().user(request)
        if peer is not None and _allowed(peer, own):
            return ADMIN
        found = self._bearer(request)
        if found is None:
            raise ApiError(403, "Forbidden", "only root and the user who started this lab may use its API")
        return found


def _allowed(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    return socket_owner(peer, own, _TCP.read_text()) in (0, os.getuid())


def socket_owner(local: tuple[str, int], remote: tuple[str, int], table: str) -> int | None:
    """The uid of the IPv4 socket with these addresses in the text of /proc/net/tcp, or None."""
    wanted = [_hex(local), _hex(remote)]
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == wanted:
            return int(fields[7])
    return None


def _hex(end: tuple[str, int]) -> str:
    """An address as /proc/net/tcp writes it: the IPv4 address as a 32-bit number in host byte order, then the port."""
    (number,) = struct.unpack("=I", socket.inet_aton(end[0]))
    return f"{number:08X}:{end[1]:04X}"
