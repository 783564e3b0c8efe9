"""The sockets of the DNS server: UDP and TCP on every address of the pod, and an upstream server if there is one.

The lab's probes are answered too, as its stand-in servers do: with the pod's name."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dns.exception

from nodenet.dns import wire
from nodenet.dns.shares import Shares
from nodenet.dns.wire import Question
from nodenet.dns.zone import Zone

log = logging.getLogger(__name__)

PORT = 53
# What a probe sends by UDP. By TCP it sends an HTTP request, which read as a length is more than a question can have.
_PROBES = (b"", b"hostname")
_LONGEST_REQUEST = 65536
# Limits of TCP, for each socket and for each client: clients are hostile.
_MOST_CONNECTIONS, _CONNECTIONS_OF_ONE = 200, 20
_IDLE_SECONDS = 10.0
# Questions that wait for the upstream server at the same time, of all clients and of one, and how long one waits.
_MOST_FORWARDED, _FORWARDED_OF_ONE = 200, 20
_UPSTREAM_SECONDS = 2.0
# No answer, or, as in wire.read, one that cannot be read.
_UPSTREAM_ERRORS = (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError)

_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"

ZoneSource = Callable[[], Zone]


class Resolver:
    """Answers one message. `upstream`: the address of the server for names outside of the cluster; "": there is
    none."""

    def __init__(self, zone: ZoneSource, upstream: str = "") -> None:
        self._zone = zone
        self._upstream = upstream
        self._forwarding = Shares(_MOST_FORWARDED, _FORWARDED_OF_ONE)

    def local(self, data: bytes, over_tcp: bool) -> bytes | Question | None:
        """The answer from the zone; None if the message gets none; the question if the upstream server is needed."""
        question = wire.read(data, over_tcp)
        if not isinstance(question, Question):
            return question
        zone = self._zone()
        found = zone.ask(question.name, question.type)
        if found.outside and self._upstream:
            return question
        try:
            return wire.write(question, found, zone.domain)
        except dns.exception.DNSException as error:
            # Objects of the API are people's input: a name in them may be one that DNS cannot have.
            return wire.failure(question, f"the records of this name cannot be written: {error}")

    async def forwarded(self, question: Question, data: bytes, client: str) -> bytes:
        """The upstream server's answer, after the CNAMEs of ExternalName Services that lead to its name. `client`: the
        address that the question came from."""
        found = self._zone().ask(question.name, question.type)
        if found.records:
            try:
                data = wire.question_for(question, found.outside)
            except dns.exception.DNSException as error:
                return wire.failure(question, f"the target of this name is not a DNS name: {error}")
        with self._forwarding.place(client) as free:
            if not free:
                return wire.failure(question, "too many questions wait for the upstream DNS server")
            try:
                async with asyncio.timeout(_UPSTREAM_SECONDS):
                    answer = await _ask_by_tcp(self._upstream, data)
                return wire.join(question, found, answer) if found.records else wire.fitting(question, answer)
            except (*_UPSTREAM_ERRORS, dns.exception.DNSException) as error:
                reason = str(error) or "no answer"
                return wire.failure(question, f"upstream DNS server {self._upstream}: {reason}")


async def _ask_by_tcp(server: str, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server, PORT)
    try:
        writer.write(struct.pack("!H", len(data)) + data)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(length)
    finally:
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """UDP. `resolver` None: a port that is not DNS."""

    def __init__(self, name: bytes, resolver: Resolver | None) -> None:
        self._name = name
        self._resolver = resolver
        self._running: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        if self._resolver is None or data.strip() in _PROBES:
            self._transport.sendto(self._name, peer)
            return
        found = self._resolver.local(data, over_tcp=False)
        if isinstance(found, Question):
            task = asyncio.ensure_future(self._forward(self._resolver, found, data, peer))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        elif found is not None:
            self._transport.sendto(found, peer)

    async def _forward(self, resolver: Resolver, question: Question, data: bytes, peer: tuple[str, int]) -> None:
        self._transport.sendto(await resolver.forwarded(question, data, peer[0]), peer)


class _Streams:
    """TCP: messages with their length before them; a client may ask several times. `resolver` None: a port that is not
    DNS."""

    def __init__(self, name: bytes, resolver: Resolver | None) -> None:
        self._name = name
        self._resolver = resolver
        self._open = Shares(_MOST_CONNECTIONS, _CONNECTIONS_OF_ONE)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. A client with too many is refused a new one; its open ones, and those of others, stay."""
        # None: the client has closed already.
        peer = writer.get_extra_info("peername")
        client = peer[0] if peer else ""
        try:
            with self._open.place(client) as free:
                while free and await self._one(reader, writer, client):
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a TCP client has closed, or is too slow")
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: str) -> bool:
        """Answer one message. Returns whether another one may follow."""
        async with asyncio.timeout(_IDLE_SECONDS):
            start = await reader.readexactly(2)
            (length,) = struct.unpack("!H", start)
            if self._resolver is None or length > wire.LONGEST_QUESTION:
                await reader.readuntil(b"\r\n\r\n")
                return await self._send(writer, _HTTP % (len(self._name), self._name), more=False)
            data = await reader.readexactly(length)
        found = self._resolver.local(data, over_tcp=True)
        if isinstance(found, Question):
            found = await self._resolver.forwarded(found, data, client)
        return found is not None and await self._send(writer, struct.pack("!H", len(found)) + found, more=True)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, *, more: bool) -> bool:
        writer.write(data)
        async with asyncio.timeout(_IDLE_SECONDS):
            await writer.drain()
        return more


class Sockets:
    """The open sockets of port 53 and of further ports. Open them as root, serve later. `ports`: PORT/PROTOCOL."""

    def __init__(
        self, ports: Sequence[str] = (), addresses: Sequence[str] = ("0.0.0.0", "::"), own: int = PORT
    ) -> None:
        """Raises OSError if one cannot be opened. IPv6 is left out if the kernel does not have it."""
        usable = [address for address in addresses if ":" not in address or socket.has_dualstack_ipv6()]
        wanted = dict.fromkeys([(own, "UDP"), (own, "TCP"), *map(_port, ports)])
        kinds = {"UDP": socket.SOCK_DGRAM, "TCP": socket.SOCK_STREAM}
        self.own = own
        self._serving: list[asyncio.BaseTransport | asyncio.Server] = []
        self._open = [
            (number, _bind(address, number, kinds[protocol]))
            for number, protocol in wanted
            if protocol in kinds
            for address in usable
        ]

    async def serve(self, name: str, resolver: Resolver) -> None:
        """Start to answer. `name`: the pod's."""
        loop = asyncio.get_running_loop()
        for number, sock in self._open:
            of_port = resolver if number == self.own else None
            if sock.type is socket.SOCK_DGRAM:
                made = await loop.create_datagram_endpoint(partial(_Datagrams, name.encode(), of_port), sock=sock)
                self._serving.append(made[0])
            else:
                streams = _Streams(name.encode(), of_port)
                self._serving.append(
                    await asyncio.start_server(streams.serve, sock=sock, backlog=128, limit=_LONGEST_REQUEST)
                )

    def close(self) -> None:
        for serving in self._serving:
            serving.close()

    @property
    def bound(self) -> dict[str, int]:
        """The numbers that DNS has, by protocol: for tests, which let the kernel choose."""
        own = [sock for number, sock in self._open if number == self.own]
        return {"UDP" if sock.type is socket.SOCK_DGRAM else "TCP": sock.getsockname()[1] for sock in own}


def _port(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return int(number), protocol or "TCP"


def _bind(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    if kind is socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock
