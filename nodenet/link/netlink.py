"""The part of netlink(7) that wiring a pod takes: messages, attributes, sockets, their errors.

pyroute2 speaks all of it, but importing it costs more than wiring a pod (docs/decisions/0010-own-rtnetlink.md), and the
plugin may have to do that in a process of its own at every pod start. Numbers are those of linux/netlink.h,
linux/rtnetlink.h and linux/if_link.h. Nothing here knows what a message means: handle.py and its neighbours do.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence

# Flags of a request.
ECHO, REPLACE, EXCL, CREATE, APPEND = 0x8, 0x100, 0x200, 0x400, 0x800
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
# Flags of an answer: part of several; the dump met a change; an error is followed by attributes; without our request.
_MULTI, _DUMP_INTERRUPTED, _ACK_TLVS, _CAPPED = 0x2, 0x10, 0x200, 0x100
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 10, 11, 12
NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# Bytes. The kernel's answers are at most 32 KiB each.
_BUFFER = 1 << 16
_TEXT_ATTRIBUTE = 1
# How often a dump is begun again because what it lists changed meanwhile.
_TRIES = 5
# Messages of changes that are read without a pause.
_AT_ONCE = 1000


class RefusedError(Exception):
    """The kernel's error: `code` is the errno, `text` the kernel's own words or "", `index` the message of a batch."""

    def __init__(self, code: int, text: str = "", index: int = 0) -> None:
        super().__init__(os.strerror(code) + (f" ({text})" if text else ""))
        self.code = code
        self.text = text
        self.index = index


class Request:
    """One message to the kernel: type, body (fixed header and attributes), flags beyond "request" and "acknowledge"."""

    __slots__ = ("body", "flags", "kind")

    def __init__(self, kind: int, body: bytes, flags: int = 0) -> None:
        self.kind, self.body, self.flags = kind, body, flags


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(1, "little"))


def u32(kind: int, value: int) -> bytes:
    """A 32-bit number in the machine's byte order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """A string with its NUL."""
    return attribute(kind, os.fsencode(value) + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type, from `offset` on. Of a repeated type the last one counts; a cut-off one ends the reading."""
    found = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def number(found: Mapping[int, bytes], kind: int) -> int:
    """An unsigned number of one to eight bytes in the machine's order, or 0 when the attribute is not there."""
    return int.from_bytes(found.get(kind, b""), "little" if _LITTLE else "big")


def string(found: Mapping[int, bytes], kind: int) -> str:
    return os.fsdecode(found.get(kind, b"").rstrip(b"\0"))


_LITTLE = struct.pack("=H", 1) == b"\1\0"


class Netlink:
    """A netlink socket (rtnetlink, sock_diag, nfnetlink) that is used synchronously, by one thread at a time.

    An error of the socket is a RefusedError too. ETIMEDOUT: the socket has a timeout and the kernel does not answer.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0
        self._buffer = bytearray(_BUFFER)
        # Words for errors, no copy of our request in them, and filters of a dump that are heeded (Linux 4.20).
        for option in (_EXT_ACK, _CAP_ACK, _STRICT_CHECK):
            sock.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        self._sock.close()

    def run(self, *requests: Request) -> None:
        """Carry out requests in order, all in one system call. Raises RefusedError for the first one that failed; those
        after it have been tried too."""
        packets = []
        first = self._sequence + 1
        for request in requests:
            self._sequence += 1
            flags = _REQUEST | _ACK | request.flags
            packets.append(_pack(request, flags, self._sequence))
        self._send(b"".join(packets))
        refused: RefusedError | None = None
        for _ in requests:
            for kind, flags, sequence, body in self._receive(first):
                if kind == _ERROR and (error := _error(body, flags, sequence - first)) and refused is None:
                    refused = error
        if refused is not None:
            raise refused

    def transact(self, begin: Request, requests: Sequence[Request], end: Request) -> None:
        """Carry out requests between two marks of nfnetlink: all of them or none. Raises RefusedError for the first one
        that failed; its index counts from `begin`."""
        first, last = self._sequence + 1, self._sequence + 1 + len(requests)
        packets = []
        for request in (begin, *requests, end):
            self._sequence += 1
            # One acknowledgement is enough: the kernel reports every failure, and this one after them.
            ack = _ACK if self._sequence == last else 0
            packets.append(_pack(request, _REQUEST | ack | request.flags, self._sequence))
        self._send(b"".join(packets))
        refused: RefusedError | None = None
        while True:
            for kind, flags, sequence, body in self._receive(first):
                if kind != _ERROR:
                    continue
                refused = refused or _error(body, flags, sequence - first)
                # The kernel answers `begin` only when it refuses the whole: then nothing else is answered.
                if sequence in (first, last):
                    if refused is not None:
                        raise refused
                    return

    def ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """The body of the one message that answers. Raises RefusedError."""
        self._sequence += 1
        self._send(_pack(Request(kind, body), _REQUEST | flags, self._sequence))
        for answer, flags, _, found in self._receive(self._sequence):
            if answer == _ERROR and (error := _error(found, flags, 0)):
                raise error
            if answer != _ERROR:
                return found
        raise RefusedError(errno.EBADMSG)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all objects of a kind, as they were at one moment. Raises RefusedError."""
        for _ in range(_TRIES):
            found, whole = self._dump(kind, body)
            if whole:
                return found
        raise RefusedError(errno.EAGAIN, "what is listed changes all the time")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._send(_pack(Request(kind, body), _REQUEST | _DUMP, self._sequence))
        found: list[bytes] = []
        whole = True
        while True:
            for answer, flags, _, part in self._receive(self._sequence):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if answer in (_ERROR, _DONE):
                    # Both begin with a negative errno or 0; the list is over.
                    if error := _error(part, flags, 0):
                        raise error
                    return found, whole
                found.append(part)

    def _send(self, packets: bytes) -> None:
        try:
            self._sock.send(packets)
        except OSError as error:
            # A timeout has no number of its own.
            raise RefusedError(error.errno or errno.ETIMEDOUT) from error

    def _receive(self, first: int) -> list[tuple[int, int, int, bytes]]:
        """Messages of the next packet: type, flags, sequence number, body. Older ones, of a call that was cut short by
        an exception, are left out."""
        while True:
            try:
                size = self._sock.recv_into(self._buffer)
            except OSError as error:
                raise RefusedError(error.errno or errno.ETIMEDOUT) from error
            data = bytes(memoryview(self._buffer)[:size])
            found = []
            offset = 0
            while offset + 16 <= size:
                length, kind, flags, sequence, _ = _MESSAGE.unpack_from(data, offset)
                if length < 16 or offset + length > size:
                    raise RefusedError(errno.EBADMSG, "netlink message cut off")
                if sequence >= first:
                    found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
                offset += (length + 3) & ~3
            if found:
                return found


class Listener:
    """Tells when something of the groups changed in the current namespace: `fd` can be read then, and `drain` empties
    it. `groups`: bits of RTMGRP_*, linux/rtnetlink.h."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, groups))
        self.fd = self._socket.fileno()

    def drain(self) -> None:
        """Discard what was sent so far. After 1000 messages it returns: `fd` can still be read then. Messages that the
        kernel had no room for were changes as well."""
        for _ in range(_AT_ONCE):
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        self._socket.close()


def _pack(request: Request, flags: int, sequence: int) -> bytes:
    body = request.body
    return _MESSAGE.pack(len(body) + 16, request.kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def _error(body: bytes, flags: int, index: int) -> RefusedError | None:
    """The error that an answer tells; None: it says that all is well."""
    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code == 0:
        return None
    words = ""
    if flags & _ACK_TLVS:
        # After the code comes the header of our request, and the rest of it when it was not capped.
        skipped = 20 if flags & _CAPPED or len(body) < 8 else 4 + ((struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
        words = string(attributes(body, skipped), _TEXT_ATTRIBUTE)
    return RefusedError(code, words, index)
