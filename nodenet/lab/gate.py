"""Between the fabric and the lab's API server: what a node's clients meet is what somebody staged for that node.

The gate owns the sockets on which nodes and their pods reach the API. On 127.0.0.1 people and tests reach it without a
gate, and the lab's kubelets and controllers call it in its own process: they go on in every trouble.

    nodes -> _Listener -> _Connection (gate_connection.py) -> aiohttp's protocol -> the API's handlers

Nothing here outlives the daemon: no firewall rule, no queueing discipline, no other process.
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
    """`networks` are the addresses of each node and of its pods."""

    def __init__(self, networks: Mapping[str, Collection[IPNetwork]]) -> None:
        self._networks = networks
        self._troubles: dict[str, ApiTrouble] = {}
        self._connections: set[Connection] = set()
        self._listeners: list[_Listener] = []

    @asynccontextmanager
    async def serve(
        self, accept: Callable[[], asyncio.Protocol], sockets: Collection[socket.socket]
    ) -> AsyncIterator[None]:
        """Accept on bound sockets, which the gate then owns. `accept` makes the server's side of one connection."""

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
        """Whose address it is; None: no node's."""
        address = ip_address(host)
        return next((node for node, networks in self._networks.items() if any(address in n for n in networks)), None)

    def refuse(self, host: str) -> None:
        """Raises the ApiError that a client with this address gets instead of an answer, if one is staged."""
        trouble = self.trouble_of(host) if host and self._troubles else None
        if trouble is not None and trouble.mode is Mode.ERROR:
            raise ApiError(trouble.code, HTTPStatus(trouble.code).phrase.replace(" ", ""), "staged by the lab")

    def trouble_of(self, host: str) -> ApiTrouble | None:
        """What is staged for the node that has this address, or whose pod has it."""
        node = self.node_of(host) if self._troubles else None
        return self._troubles.get(node) if node is not None else None

    async def stage(self, nodes: Collection[str], trouble: ApiTrouble | None) -> None:
        """From now on, for new connections and for those that are open. None: all is well again."""
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
        """The listening sockets get no SYN of a node in a blackhole."""
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
    """One bound socket. It listens, or the kernel refuses connections to its port as if nothing were there."""

    def __init__(self, sock: socket.socket, connection: Callable[[], Connection]) -> None:
        self.sock = sock
        self._connection = connection
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        if self._server is None:
            self.sock.listen(_BACKLOG)
            # A duplicate: the event loop closes what it stops serving, and the port stays bound to ours.
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._connection, sock=self.sock.dup())

    async def refuse(self) -> None:
        """shutdown(2) takes a socket out of LISTEN and leaves it bound (Linux): a SYN then gets a RST."""
        if self._server is not None:
            self.close()
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def networks_of(plan: LabPlan) -> dict[str, list[IPNetwork]]:
    """By node: its own addresses, as networks of one address, and those of its pods."""
    return {
        node.name: [*(ip_network(interface.ip) for interface in node.addresses), *node.pod_cidrs] for node in plan.nodes
    }
