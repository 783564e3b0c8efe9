"""Stands between the fabric and the lab's API server and applies the faults that were set for a node to its clients.

The gate owns the sockets on which nodes and their pods reach the API. People and tests use 127.0.0.1, and the lab's
kubelets and controllers call the API within its process. Both bypass the gate, so no fault affects them.

    nodes -> _Listener -> _Connection (gate_connection.py) -> aiohttp's protocol -> the API's handlers

Nothing here remains after the daemon has ended: no firewall rule, no queueing discipline, no other process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from ipaddress import ip_address, ip_network

from nodenet.lab import packet_filter
from nodenet.lab.api_trouble import ApiTrouble, Mode
from nodenet.lab.apiserver.status import ApiError
from nodenet.lab.gate_connection import Connection
from nodenet.lab.layout import LabPlan
from nodenet.model import IPNetwork

log = logging.getLogger(__name__)

_BACKLOG = 128


class Gate:
    """`networks`: by node, the addresses of the node and of its pods."""

    def __init__(self, networks: Mapping[str, Collection[IPNetwork]]) -> None:
        self._networks = networks
        self._troubles: dict[str, ApiTrouble] = {}
        self._connections: set[Connection] = set()
        self._listeners: list[_Listener] = []

    @asynccontextmanager
    async def serve(
        self, accept: Callable[[], asyncio.Protocol], sockets: Collection[socket.socket]
    ) -> AsyncIterator[None]:
        """Accept connections on bound sockets, which the gate then owns. `accept` creates the server's protocol for one
        connection."""

        def connection() -> Connection:
            return Connection(accept(), self._entered, self._connections.discard)

        self._listeners = [_Listener(sock, connection) for sock in sockets]
        try:
            for listener in self._listeners:
                await listener.open()
            yield
        finally:
            for listener in self._listeners:
                listener.close()
                listener.sock.close()
            for each in list(self._connections):
                each.reset()

    def node_of(self, host: str) -> str | None:
        """The node that has this address, or whose pod has it; None if there is none."""
        address = ip_address(host)
        return next((node for node, networks in self._networks.items() if any(address in n for n in networks)), None)

    def refuse(self, host: str) -> None:
        """Raises the ApiError that was set for the clients of this address, if any (Mode.ERROR)."""
        trouble = self.trouble_of(host) if host and self._troubles else None
        if trouble is not None and trouble.mode is Mode.ERROR:
            raise ApiError(trouble.code, HTTPStatus(trouble.code).phrase.replace(" ", ""), "staged by the lab")

    def trouble_of(self, host: str) -> ApiTrouble | None:
        """The fault of the node that has this address, or whose pod has it."""
        node = self.node_of(host) if self._troubles else None
        return self._troubles.get(node) if node is not None else None

    async def stage(self, nodes: Collection[str], trouble: ApiTrouble | None) -> None:
        """Apply a fault to the new and the open connections of these nodes. None ends the fault."""
        for node in nodes:
            self._troubles.pop(node, None)
            if trouble is not None:
                self._troubles[node] = trouble
        away = self._nodes_in(Mode.AWAY) == self._networks.keys()
        self._filter_new()
        for listener in self._listeners:
            await (listener.refuse() if away else listener.open())
        for connection in list(self._connections):
            if connection.node in nodes:
                connection.apply(trouble)

    def reset(self, nodes: Collection[str]) -> int:
        """Reset every open connection of these nodes (RST). Returns how many there were."""
        found = [connection for connection in self._connections if connection.node in nodes]
        for connection in found:
            connection.reset()
        return len(found)

    def _entered(self, connection: Connection, host: str) -> ApiTrouble | None:
        connection.node = self.node_of(host)
        self._connections.add(connection)
        return self.trouble_of(host)

    def _nodes_in(self, mode: Mode) -> set[str]:
        return {node for node, trouble in self._troubles.items() if trouble.mode is mode}

    def _filter_new(self) -> None:
        """Make the listening sockets drop the SYNs of all nodes in a blackhole."""
        lost = self._nodes_in(Mode.BLACKHOLE)
        for listener in self._listeners:
            if not lost:
                packet_filter.detach(listener.sock)
            elif lost == self._networks.keys():
                packet_filter.attach(listener.sock, packet_filter.drop_all())
            else:
                version = 6 if listener.sock.family == socket.AF_INET6 else 4
                networks = [network for node in sorted(lost) for network in self._networks[node]]
                packet_filter.attach(listener.sock, packet_filter.drop_from(networks, version))


class _Listener:
    """One bound socket. It either listens, or the kernel refuses connections to its port as to an unused one."""

    def __init__(self, sock: socket.socket, connection: Callable[[], Connection]) -> None:
        self.sock = sock
        self._connection = connection
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        if self._server is None:
            self.sock.listen(_BACKLOG)
            # Give the event loop a duplicate: it closes its socket when it stops serving. Ours keeps the port bound.
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._connection, sock=self.sock.dup())

    async def refuse(self) -> None:
        """Stop listening. On Linux, shutdown(2) ends the LISTEN state but leaves the socket bound, so the kernel
        answers a SYN with a RST."""
        if self._server is not None:
            self.close()
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def networks_of(plan: LabPlan) -> dict[str, list[IPNetwork]]:
    """By node: the node's addresses, as networks of one address each, and its pod networks."""
    return {
        node.name: [*(ip_network(interface.ip) for interface in node.addresses), *node.pod_cidrs] for node in plan.nodes
    }
