"""DNS messages: a question as bytes -> the answer as bytes. Messages are hostile input. Pure, but for the random order.

RFC 1035 (messages, truncation), RFC 6891 (EDNS), RFC 8914 (extended errors), RFC 2308 (negative answers), RFC 9619 (one
question).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from nodenet.dns.zone import Answer, Record, Type, soa

# Seconds that clients may keep an answer. CoreDNS's default; clusters often use 30.
TTL = 5
# Bytes of a UDP answer: without EDNS, and the most that we send (DNS Flag Day 2020: no fragments).
CLASSIC, MOST_UDP = 512, 1232
MOST_TCP = 65535
Shuffle = Callable[[list[Record]], None]

_TYPES = frozenset(Type)
# The header of a message, without which no answer is possible.
_HEADER = 12
_RESPONSE, _OPCODE = 0x80, 0x78
# Bytes of a question: a name has 255 at most, and EDNS options are small.
LONGEST_QUESTION = 4096
# Bytes of a reason in words: with the longest name it still fits into CLASSIC.
_LONGEST_REASON = 200

OUTSIDE = "this is a name outside of the lab's cluster, and the lab has no upstream DNS server (lab up --dns-upstream)"


@dataclass(frozen=True, slots=True)
class Question:
    """A valid question. `limit`: the largest answer in bytes."""

    message: dns.message.QueryMessage
    name: str
    type: Type | None
    limit: int

    @property
    def rrset(self) -> dns.rrset.RRset:
        return self.message.question[0]


def read(data: bytes, over_tcp: bool) -> Question | bytes | None:
    """The question of a message, or the answer if it is not a valid one. None: no answer, because the message is an
    answer itself or has no header."""
    if len(data) < _HEADER or data[2] & _RESPONSE:
        return None
    code = _refusal_of_header(data)
    if code is not None:
        return _header(data, code)
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, IndexError):
        return _header(data, dns.rcode.FORMERR)
    code = _refusal(message)
    if code is not None:
        return _refuse(message, code)
    assert isinstance(message, dns.message.QueryMessage)
    limit = MOST_TCP if over_tcp else max(CLASSIC, min(message.payload or CLASSIC, MOST_UDP))
    found = message.question[0]
    text = dns.rdatatype.to_text(found.rdtype)
    return Question(message, found.name.to_text(), Type(text) if text in _TYPES else None, limit)


def _refusal_of_header(data: bytes) -> dns.rcode.Rcode | None:
    """Checks what must not reach the parser: its work, and an answer that repeats the questions, would grow with the
    message. RFC 9619: a query has one question."""
    questions, answers, authorities = struct.unpack_from("!HHH", data, 4)
    if data[2] & _OPCODE:
        return dns.rcode.NOTIMP
    if len(data) > LONGEST_QUESTION or questions != 1 or answers or authorities:
        return dns.rcode.FORMERR
    return None


def _header(data: bytes, code: dns.rcode.Rcode) -> bytes:
    """An answer without a question: the id, the bits `response` and opcode, and the code."""
    return data[:2] + bytes((_RESPONSE | data[2] & _OPCODE, code)) + bytes(8)


def _refusal(message: dns.message.Message) -> dns.rcode.Rcode | None:
    if message.edns > 0:
        return dns.rcode.BADVERS
    if message.question[0].rdclass != dns.rdataclass.IN:
        return dns.rcode.REFUSED
    return None


def _refuse(message: dns.message.Message, code: dns.rcode.Rcode) -> bytes:
    answer = dns.message.Message(message.id)
    answer.flags = dns.flags.QR | (message.flags & dns.flags.RD)
    answer.question = message.question
    if message.edns >= 0:
        answer.use_edns(0)
    answer.set_rcode(code)
    return answer.to_wire()


def write(question: Question, found: Answer, domain: str, shuffle: Shuffle = random.shuffle) -> bytes:
    """Addresses are in random order, so that clients that take the first one use all of them."""
    message = dns.message.make_response(question.message, recursion_available=True, our_payload=MOST_UDP)
    message.set_rcode(dns.rcode.Rcode(found.code))
    if found.authoritative:
        message.flags |= dns.flags.AA
    asked = question.rrset.name
    records = list(found.records)
    # A CNAME stays before its target.
    if not any(record.type is Type.CNAME for record in records):
        shuffle(records)
    message.answer = _sets(records, asked)
    message.additional = _sets(found.additional, asked)
    if not records and found.authoritative:
        # Tells for how long the client may remember that there is nothing.
        message.authority = _sets([Record(domain, Type.SOA, soa(domain))], asked)
    if found.outside and question.message.edns >= 0:
        explain(message, OUTSIDE)
    return message.to_wire(max_size=question.limit, prefer_truncation=True)


def explain(message: dns.message.Message, text: str) -> None:
    """Add the reason as an extended error (RFC 8914), which dig shows."""
    short = text.encode("ascii", "replace")[:_LONGEST_REASON].decode()
    message.use_edns(0, payload=MOST_UDP, options=[dns.edns.EDEOption(dns.edns.EDECode.OTHER, short)])


def failure(question: Question, text: str) -> bytes:
    """SERVFAIL with a reason."""
    message = dns.message.make_response(question.message, recursion_available=True, our_payload=MOST_UDP)
    message.set_rcode(dns.rcode.SERVFAIL)
    if question.message.edns >= 0:
        explain(message, text)
    return message.to_wire(max_size=question.limit, prefer_truncation=True)


def question_for(question: Question, name: str) -> bytes:
    """The same question for another name."""
    kind = question.rrset.rdtype
    message = dns.message.make_query(dns.name.from_text(name), kind, id=question.message.id)
    return message.to_wire()


def join(question: Question, found: Answer, upstream: bytes) -> bytes:
    """Our records, then those of the upstream server's answer. Raises DNSException if it cannot be read."""
    theirs = dns.message.from_wire(upstream)
    message = dns.message.make_response(question.message, recursion_available=True, our_payload=MOST_UDP)
    message.set_rcode(theirs.rcode())
    message.answer = [*_sets(found.records, question.rrset.name), *theirs.answer]
    return message.to_wire(max_size=question.limit, prefer_truncation=True)


def fitting(question: Question, answer: bytes) -> bytes:
    """An answer of any size; if it is too large, one that tells the client to ask again by TCP."""
    if len(answer) <= question.limit:
        return answer
    message = dns.message.make_response(question.message, recursion_available=True, our_payload=MOST_UDP)
    message.flags |= dns.flags.TC
    return message.to_wire()


def _sets(records: list[Record] | tuple[Record, ...], asked: dns.name.Name) -> list[dns.rrset.RRset]:
    """Records as sets by name and type. The asked name is written as the client wrote it."""
    found: dict[tuple[str, Type], dns.rrset.RRset] = {}
    for record in records:
        key = (record.name, record.type)
        if key not in found:
            name = dns.name.from_text(record.name)
            kind = dns.rdatatype.from_text(record.type)
            found[key] = dns.rrset.RRset(asked if name == asked else name, dns.rdataclass.IN, kind)
        rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(record.type), _absolute(record))
        found[key].add(rdata, TTL)
    return list(found.values())


def _absolute(record: Record) -> str:
    """The record's data with the last dot of its names, as zone files have it."""
    if record.type in (Type.CNAME, Type.NS, Type.PTR, Type.SRV):
        return f"{record.data}."
    if record.type is Type.SOA:
        first, second, rest = record.data.split(" ", 2)
        return f"{first}. {second}. {rest}"
    return record.data
