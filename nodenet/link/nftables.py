"""The netlink interface of nf_tables: one socket, requests, and the expressions of rules.

The numbers are from linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct

from nodenet.link.handle import LinkError
from nodenet.link.netlink import (
    APPEND,
    CREATE,
    Netlink,
    RefusedError,
    Request,
    attribute,
    attributes,
    nested,
    string,
    text,
)

NETLINK_NETFILTER = 12
SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN = 0, 1, 2, 3, 4, 5
NEWRULE, GETRULE, DELRULE, NEWSET = 6, 7, 8, 9
NEWSETELEM, GETSETELEM, DELSETELEM, GETGEN = 12, 13, 14, 16
IP, IP6, NETDEV = 2, 10, 5
POSTROUTING, SRCNAT, INGRESS, BEFORE_ALL = 4, 100, 0, -500
ACCEPT, DROP, RETURN = 1, 0, -5
ERESTART = 85
# Errors of a kernel without nf_tables, or without parts of it.
ABSENT = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT)
# Seconds. The kernel replies at once; the timeout is for the case that it does not.
TIMEOUT = 10.0
OURS = "nodenet-"


def available() -> bool:
    """False if the kernel has no nfnetlink, so that there can be no rules."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return False
    return True


class Nft:
    """A socket to nf_tables in the calling thread's network namespace. Its calls raise RefusedError."""

    def __init__(self) -> None:
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        except OSError as error:
            raise LinkError("cannot reach nf_tables: the kernel has no nfnetlink", error.errno or 0) from error
        sock.settimeout(TIMEOUT)
        self._kernel = Netlink(sock)

    def __enter__(self) -> Nft:
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.close()

    def change(self, requests: list[Request], generation: int | None = None) -> None:
        """Execute one transaction. ERESTART if the ruleset has changed since `generation`."""
        guard = be32(1, generation) if generation is not None else b""
        begin = Request(BATCH_BEGIN, header(0, SUBSYSTEM) + guard)
        self._kernel.transact(begin, requests, Request(BATCH_END, header(0, SUBSYSTEM)))

    def tables(self) -> list[tuple[int, str]]:
        """(family, name) of our tables."""
        found = []
        for body in self.list(GETTABLE, 0, b""):
            name = string(attributes(body, 4), 1)
            if name.startswith(OURS):
                found.append((body[0], name))
        return found

    def get(self, kind: int, family: int, body: bytes) -> bytes:
        """The body of the requested object, including nfgenmsg. ENOENT if it does not exist."""
        asked = request(kind, family, body)
        return self._kernel.get(asked.kind, asked.body)

    def list(self, kind: int, family: int, body: bytes) -> list[bytes]:
        """The bodies of all requested objects, including nfgenmsg."""
        asked = request(kind, family, body)
        return self._kernel.dump(asked.kind, asked.body)

    def generation(self) -> int:
        """The generation number of the ruleset; every change by any program increments it."""
        return int(struct.unpack_from(">I", self.get(GETGEN, 0, b""), 8)[0])


def rule(family: int, table: str, chain: str, expressions: list[bytes]) -> Request:
    body = text(1, table) + text(2, chain) + nested(4, *expressions)
    return request(NEWRULE, family, body, CREATE | APPEND)


def request(kind: int, family: int, body: bytes, flags: int = 0) -> Request:
    return Request(SUBSYSTEM << 8 | kind, header(family) + body, flags)


def expression(name: str, body: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, body))


def payload(base: int, offset: int, length: int) -> bytes:
    return expression("payload", be32(1, 1) + be32(2, base) + be32(3, offset) + be32(4, length))


def mask(mask: bytes) -> bytes:
    values = nested(4, attribute(1, mask)) + nested(5, attribute(1, bytes(len(mask))))
    return expression("bitwise", be32(1, 1) + be32(2, 1) + be32(3, len(mask)) + values)


def compare(value: bytes, equal: bool) -> bytes:
    return expression("cmp", be32(1, 1) + be32(2, 0 if equal else 1) + nested(3, attribute(1, value)))


def lookup(name: str, *, inverted: bool = False) -> bytes:
    """True if the value of register 1 is in a set of the table, or is not."""
    return expression("lookup", text(1, name) + be32(2, 1) + (be32(5, 1) if inverted else b""))


def value(register: int, content: bytes) -> bytes:
    """Put a constant into a register."""
    return expression("immediate", be32(1, register) + nested(2, attribute(1, content)))


def verdict(code: int) -> bytes:
    return expression("immediate", be32(1, 0) + nested(2, nested(2, be32(1, code))))


def be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def header(family: int, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def remove(nft: Nft, family: int, table: str) -> None:
    try:
        nft.change([request(DELTABLE, family, text(1, table))])
    except RefusedError as error:
        if error.code != errno.ENOENT:
            raise refused(f"cannot remove table {table}", error) from error


def refused(doing: str, error: RefusedError) -> LinkError:
    return LinkError(doing, error.code, error.text)
