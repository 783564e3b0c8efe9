"""The server on real sockets: UDP, TCP after truncation, EDNS, hostile messages, an upstream server."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from netpolicy.addresses import parse_address
from nodenet.dns import server, wire
from nodenet.dns.objects import Endpoint, EndpointSlice, Namespace, Port, Service
from nodenet.dns.server import Resolver, Sockets
from nodenet.dns.zone import Zone, build
from nodenet.model import ObjectRef

BASE = "default.svc.cluster.local"
MANY = 100


def zone() -> Zone:
    found = tuple(Endpoint(parse_address(f"10.0.1.{number}"), f"pod-{number}") for number in range(MANY))
    return build(
        [
            Service(ObjectRef("default", "web"), (parse_address("10.96.0.20"),), ports=(Port("http", "tcp", 80),)),
            Service(ObjectRef("default", "many"), headless=True),
            Service(ObjectRef("default", "ext"), external_name="db.example.com"),
        ],
        [EndpointSlice(ObjectRef("default", "many-1"), ObjectRef("default", "many"), (), found)],
        [Namespace("default")],
    )


@asynccontextmanager
async def serving(upstream: str = "") -> AsyncIterator[tuple[int, int]]:
    """The ports of UDP and TCP."""
    made = zone()
    sockets = Sockets(["0/TCP"], ["127.0.0.1"], own=0)
    try:
        await sockets.serve("coredns-1", Resolver(lambda: made, upstream))
        yield sockets.bound["UDP"], sockets.bound["TCP"]
    finally:
        sockets.close()


def query(name: str, kind: str = "A", **options: object) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


async def udp(message: dns.message.Message, port: int) -> dns.message.Message:
    return await dns.asyncquery.udp(message, "127.0.0.1", 3, port)


async def test_an_answer_has_the_flags_and_the_name_as_asked() -> None:
    async with serving() as (port, _):
        found = await udp(query(f"WEB.{BASE}"), port)
    assert found.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert [rrset.to_text() for rrset in found.answer] == [f"WEB.{BASE}. {wire.TTL} IN A 10.96.0.20"]
    assert found.authority == []


@pytest.mark.parametrize(
    ("name", "kind", "code"), [("nope", "A", "NXDOMAIN"), ("web", "AAAA", "NOERROR"), ("web", "MX", "NOERROR")]
)
async def test_nothing_is_told_with_the_time_to_remember_it(name: str, kind: str, code: str) -> None:
    async with serving() as (port, _):
        found = await udp(query(f"{name}.{BASE}", kind), port)
    assert dns.rcode.to_text(found.rcode()) == code
    assert found.answer == []
    (authority,) = found.authority
    assert authority.rdtype == dns.rdatatype.SOA
    assert authority.ttl == authority[0].minimum == wire.TTL


@pytest.mark.parametrize(
    ("options", "limit"), [({}, 512), ({"payload": 900}, 900), ({"payload": 4096}, 1232), ({"payload": 100}, 512)]
)
async def test_tcp_after_truncation(options: dict[str, int], limit: int) -> None:
    async with serving() as (port, tcp_port):
        asked = query(f"many.{BASE}", use_edns=0 if options else -1, **options)
        found = await udp(asked, port)
        assert found.flags & dns.flags.TC
        assert len(found.to_wire()) <= limit
        whole = await dns.asyncquery.tcp(asked, "127.0.0.1", 3, tcp_port)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == MANY


async def test_the_order_changes() -> None:
    async with serving() as (_, port):
        firsts = {
            str((await dns.asyncquery.tcp(query(f"many.{BASE}"), "127.0.0.1", 3, port)).answer[0][0]) for _ in range(10)
        }
    assert len(firsts) > 3


async def test_a_name_outside_is_refused_with_a_reason() -> None:
    async with serving() as (port, _):
        found = await udp(query("example.com", use_edns=0), port)
        target = await udp(query(f"ext.{BASE}", use_edns=0), port)
    assert found.rcode() == dns.rcode.NXDOMAIN
    assert not found.flags & dns.flags.AA
    assert "no upstream DNS server" in reason(found)
    assert target.rcode() == dns.rcode.NOERROR
    assert [rrset.rdtype for rrset in target.answer] == [dns.rdatatype.CNAME]
    assert "no upstream DNS server" in reason(target)


def reason(message: dns.message.Message) -> str:
    (option,) = message.options
    assert isinstance(option, dns.edns.EDEOption)
    return option.text or ""


def changed(message: dns.message.Message, **fields: object) -> dns.message.Message:
    for key, value in fields.items():
        setattr(message, key, value)
    return message


async def test_what_is_no_question_is_refused() -> None:
    update = query(f"web.{BASE}")
    update.set_opcode(dns.opcode.NOTIFY)
    chaos = dns.message.make_query("version.bind", "TXT", rdclass=dns.rdataclass.CH)
    async with serving() as (port, _):
        assert (await udp(update, port)).rcode() == dns.rcode.NOTIMP
        assert (await udp(chaos, port)).rcode() == dns.rcode.REFUSED
        assert (await udp(query(f"web.{BASE}", use_edns=1), port)).rcode() == dns.rcode.BADVERS


def test_hostile_messages() -> None:
    """No message raises; an answer to an answer would be a loop."""
    chance = random.Random(7)
    good = query(f"_http._tcp.web.{BASE}", "SRV", use_edns=0).to_wire()
    made = zone()
    resolver = Resolver(lambda: made)
    assert resolver.local(good[:2] + b"\x80" + good[3:], over_tcp=False) is None
    for length in range(len(good)):
        found = resolver.local(good[:length], over_tcp=False)
        assert (found is None) is (length < 12)
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found = resolver.local(bytes(data), over_tcp=chance.random() < 0.5)
        assert found is None or (isinstance(found, bytes) and found[:2] == data[:2] and found[2] & 0x80)
    # A compression pointer to itself, and a name of pointers.
    assert resolver.local(good[:12] + b"\xc0\x0c\x00\x01\x00\x01", over_tcp=False) == good[:2] + b"\x80\x01" + bytes(8)


def test_a_name_that_dns_cannot_have() -> None:
    """A label has 63 characters at most. The API refuses such an externalName; a host name comes from elsewhere too."""
    bad = build([Service(ObjectRef("default", "bad"), external_name=f"{'x' * 64}.example")], [], [Namespace("default")])
    found = Resolver(lambda: bad).local(query(f"bad.{BASE}", use_edns=0).to_wire(), over_tcp=False)
    assert isinstance(found, bytes)
    message = dns.message.from_wire(found)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert "cannot be written" in reason(message)


def test_a_question_is_checked_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of questions, or pointers, would cost much work, and an answer that repeats them would be as long."""

    def parse(_data: bytes) -> dns.message.Message:
        pytest.fail("the parser got the message")

    monkeypatch.setattr(dns.message, "from_wire", parse)
    good = query(f"web.{BASE}").to_wire()
    many = b"\x00\x01\x01\x00" + struct.pack("!4H", 6000, 0, 0, 0) + good[12:] + b"\xc0\x0c\x00\x01\x00\x01" * 5999
    assert wire.read(many, over_tcp=False) == b"\x00\x01\x80\x01" + bytes(8)
    counts = [(0, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0)]
    for data in [good[:4] + struct.pack("!4H", *found) + good[12:] for found in counts]:
        assert wire.read(data, over_tcp=True) == good[:2] + b"\x80\x01" + bytes(8)
    long = good + bytes(wire.LONGEST_QUESTION + 1 - len(good))
    assert wire.read(long, over_tcp=False) == good[:2] + b"\x80\x01" + bytes(8)
    # The opcode stays, so that the client knows which request has no implementation.
    update = good[:2] + b"\x29" + good[3:]
    assert wire.read(update, over_tcp=False) == good[:2] + b"\xa8\x04" + bytes(8)


def test_a_long_reason_fits_into_the_smallest_answer() -> None:
    asked = wire.read(query(".".join(["a" * 60] * 4), use_edns=0, payload=512).to_wire(), over_tcp=False)
    assert isinstance(asked, wire.Question)
    found = wire.failure(asked, "\u00e9" * 1000)
    assert len(found) <= 512
    assert reason(dns.message.from_wire(found)).startswith("??")


async def test_probes_get_the_pods_name() -> None:
    """`lab probe` asks every port of every pod in the same way."""
    async with serving() as (udp_port, tcp_port):
        loop = asyncio.get_running_loop()
        got: asyncio.Future[bytes] = loop.create_future()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _peer: object) -> None:
                got.set_result(data)

        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", udp_port))
        transport.sendto(b"hostname")
        async with asyncio.timeout(3):
            assert await got == b"coredns-1"
        transport.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", tcp_port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(3):
            assert (await reader.read()).endswith(b"\r\n\r\ncoredns-1")
        writer.close()


async def test_a_connection_serves_several_questions_and_idle_ones_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.2)
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in (1, 2):
            data = query(f"web.{BASE}", id=number).to_wire()
            writer.write(struct.pack("!H", len(data)) + data)
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            assert dns.message.from_wire(await reader.readexactly(length)).id == number
        async with asyncio.timeout(3):
            assert await reader.read() == b""
        writer.close()


async def connect(port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    """The answer to one question; empty if the server has closed the connection."""
    reader, writer = connection
    data = query(f"web.{BASE}").to_wire()
    writer.write(struct.pack("!H", len(data)) + data)
    async with asyncio.timeout(3):
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            return await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""


async def test_one_client_cannot_take_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pod opens as many connections as it can: its first ones and those of others are served."""
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 6)
    monkeypatch.setattr(server, "_CONNECTIONS_OF_ONE", 4)
    async with serving() as (_, port):
        other = await connect(port, "127.0.0.2")
        assert await ask(other)
        greedy = [await connect(port, "127.0.0.1") for _ in range(20)]
        answered = [bool(await ask(connection)) for connection in greedy]
        assert answered == [True] * 4 + [False] * 16
        assert await ask(other), "an open connection stays"
        newest = await connect(port, "127.0.0.3")
        assert await ask(newest)
        # All places are taken now: a client without a connection is refused, and gets a place when one is free.
        last = await connect(port, "127.0.0.4")
        assert await ask(last) == b""
        newest[1].close()
        await newest[1].wait_closed()
        async with asyncio.timeout(3):
            while not await ask(again := await connect(port, "127.0.0.4")):
                again[1].close()
        for _, writer in (other, last, again, *greedy):
            writer.close()


async def test_one_client_cannot_take_all_places_of_forwarded_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_FORWARDED", 5)
    monkeypatch.setattr(server, "_FORWARDED_OF_ONE", 3)
    answers = asyncio.Event()
    data = query("www.example.com", use_edns=0).to_wire()

    async def wait(_server: str, _data: bytes) -> bytes:
        await answers.wait()
        return data

    monkeypatch.setattr(server, "_ask_by_tcp", wait)
    made = zone()
    resolver = Resolver(lambda: made, "192.0.2.1")
    question = resolver.local(data, over_tcp=False)
    assert isinstance(question, wire.Question)
    async with asyncio.TaskGroup() as group:
        clients = ["10.0.0.1"] * 5 + ["10.0.0.2"] * 2 + ["10.0.0.3"]
        tasks = [group.create_task(resolver.forwarded(question, data, client)) for client in clients]
        await asyncio.sleep(0)
        refused = [task.done() for task in tasks]
        answers.set()
    assert refused == [False] * 3 + [True] * 2 + [False] * 2 + [True]
    assert "too many questions" in reason(dns.message.from_wire(tasks[3].result()))
    assert await resolver.forwarded(question, data, "10.0.0.1") == data, "its places are free again"


@asynccontextmanager
async def upstream(monkeypatch: pytest.MonkeyPatch, answer: bytes | None = None) -> AsyncIterator[list[str]]:
    """An upstream server with one address for every name, or this answer."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        message = dns.message.from_wire(await reader.readexactly(length))
        asked.append(message.question[0].name.to_text())
        made = dns.message.make_response(message)
        made.answer = [dns.rrset.from_text(message.question[0].name, 60, "IN", "A", "192.0.2.53")]
        data = made.to_wire() if answer is None else answer
        writer.write(struct.pack("!H", len(data)) + data)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setattr(server, "PORT", listening.sockets[0].getsockname()[1])
    async with listening:
        yield asked


async def test_the_upstream_server_answers_for_names_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with upstream(monkeypatch) as asked, serving("127.0.0.1") as (port, _):
        found = await udp(query("www.example.com"), port)
        target = await udp(query(f"ext.{BASE}"), port)
        own = await udp(query(f"nope.{BASE}"), port)
    assert [rrset.to_text() for rrset in found.answer] == ["www.example.com. 60 IN A 192.0.2.53"]
    assert [rrset.to_text() for rrset in target.answer] == [
        f"ext.{BASE}. {wire.TTL} IN CNAME db.example.com.",
        "db.example.com. 60 IN A 192.0.2.53",
    ]
    assert own.rcode() == dns.rcode.NXDOMAIN
    # Names of the cluster are not told to others.
    assert asked == ["www.example.com.", "db.example.com."]


@pytest.mark.parametrize("target", ["a..b", f"{'x' * 70}.example", "\\256"])
async def test_a_broken_external_name_is_answered_without_the_upstream_server(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    bad = build([Service(ObjectRef("default", "bad"), external_name=target)], [], [Namespace("default")])
    data = query(f"bad.{BASE}", use_edns=0).to_wire()
    resolver = Resolver(lambda: bad, "127.0.0.1")
    async with upstream(monkeypatch) as asked:
        question = resolver.local(data, over_tcp=False)
        assert isinstance(question, wire.Question)
        found = dns.message.from_wire(await resolver.forwarded(question, data, "192.0.2.1"))
    assert found.rcode() == dns.rcode.SERVFAIL
    assert "is not a DNS name" in reason(found)
    assert asked == []


@pytest.mark.parametrize("answer", [b"", b"nonsense"])
async def test_an_upstream_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(server, "_UPSTREAM_SECONDS", 0.5)
    async with upstream(monkeypatch, answer), serving("127.0.0.1") as (port, _):
        found = await udp(query(f"ext.{BASE}", use_edns=0), port)
    assert found.rcode() == dns.rcode.SERVFAIL
    assert "upstream DNS server 127.0.0.1" in reason(found)


async def test_an_upstream_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PORT", 1)
    async with serving("127.0.0.1") as (port, _):
        found = await udp(query("www.example.com", use_edns=0), port)
    assert found.rcode() == dns.rcode.SERVFAIL
    assert "upstream DNS server 127.0.0.1" in reason(found)
