"""The part of netlink(7) that wiring a pod needs: messages, attributes, sockets, and their errors.

pyroute2 supports all of it, but importing it costs more than wiring a pod (docs/decisions/0010-own-rtnetlink.md), and
without an agent the plugin starts a new process at every pod start. The numbers are from linux/netlink.h,
linux/rtnetlink.h and linux/if_link.h. This module only encodes and decodes; handle.py and the other modules know the
meaning of messages.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

# Flags of a request.
ECHO, REPLACE, EXCL, CREATE, APPEND = 0x8, 0x100, 0x200, 0x400, 0x800
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
# Flags of a reply: part of a multipart message; the dump is inconsistent; attributes follow the error; the error omits
# our request.
_MULTI, _DUMP_INTERRUPTED, _ACK_TLVS, _CAPPED = 0x2, 0x10, 0x200, 0x100
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 10, 11, 12
NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# asm-generic/socket.h: like SO_SNDBUF, but without the limit net.core.wmem_max. It needs CAP_NET_ADMIN.
_SO_SNDBUFFORCE = 32
# Bytes of the send buffer that the kernel does not use for a message (net/netlink/af_netlink.c has 32).
_RESERVED = 256
# Bytes. The kernel's messages have at most 32 KiB each.
_BUFFER = 1 << 16
_TEXT_ATTRIBUTE = 1
# Attempts of a dump that is interrupted by changes.
_TRIES = 5
# Limit of notifications that one `drain` reads.
_AT_ONCE = 1000


class RefusedError(Exception):
    """An error of the kernel: `code` is the errno, `text` the kernel's message or "", `index` the position of the
    failed request in a batch."""

    def __init__(self, code: int, text: str = "", index: int = 0) -> None:
        super().__init__(os.strerror(code) + (f" ({text})" if text else ""))
        self.code = code
        self.text = text
        self.index = index


class Request:
    """A message to the kernel: type, body (fixed header and attributes), and flags besides "request" and
    "acknowledge"."""

    __slots__ = ("body", "flags", "kind")

    def __init__(self, kind: int, body: bytes, flags: int = 0) -> None:
        self.kind, self.body, self.flags = kind, body, flags


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that contains attributes."""
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
    """Attributes by type, from `offset` on. The last one of a repeated type counts; a truncated one ends the list."""
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
    """An unsigned number of one to eight bytes in host byte order; 0 if the attribute is missing."""
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
        # Error messages as text, errors without a copy of our request, and filters of dumps that are applied (Linux
        # 4.20).
        for option in (_EXT_ACK, _CAP_ACK, _STRICT_CHECK):
            sock.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        self._sock.close()

    def run(self, *requests: Request) -> None:
        """Send requests in one system call; the kernel executes them in order. Raises RefusedError for the first one
        that failed; the later ones are executed too."""
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
        """Send requests as one nfnetlink transaction, between `begin` and `end`: the kernel executes all of them or
        none. Raises RefusedError for the first one that failed; its index counts from `begin`."""
        first, last = self._sequence + 1, self._sequence + 1 + len(requests)
        packets = []
        for request in (begin, *requests, end):
            self._sequence += 1
            # One acknowledgement is enough: the kernel reports all errors before it.
            ack = _ACK if self._sequence == last else 0
            packets.append(_pack(request, _REQUEST | ack | request.flags, self._sequence))
        whole = b"".join(packets)
        self._make_room(len(whole))
        self._send(whole)
        refused: RefusedError | None = None
        while True:
            for kind, flags, sequence, body in self._receive(first):
                if kind != _ERROR:
                    continue
                refused = refused or _error(body, flags, sequence - first)
                # The kernel replies to `begin` only if it rejects the whole transaction; then no other reply follows.
                if sequence in (first, last):
                    if refused is not None:
                        raise refused
                    return

    def get(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """Send a request and return the body of its single reply. Raises RefusedError."""
        self._sequence += 1
        self._send(_pack(Request(kind, body), _REQUEST | flags, self._sequence))
        for answer, flags, _, found in self._receive(self._sequence):
            if answer == _ERROR and (error := _error(found, flags, 0)):
                raise error
            if answer != _ERROR:
                return found
        raise RefusedError(errno.EBADMSG)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all objects of a kind, from one consistent dump. Raises RefusedError."""
        for _ in range(_TRIES):
            found, whole = self._dump(kind, body)
            if whole:
                return found
        raise RefusedError(errno.EAGAIN, "the list changes too often for a consistent dump")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._send(_pack(Request(kind, body), _REQUEST | _DUMP, self._sequence))
        found: list[bytes] = []
        whole = True
        while True:
            for answer, flags, _, part in self._receive(self._sequence):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if answer in (_ERROR, _DONE):
                    # Both end the dump and begin with a negative errno or 0.
                    if error := _error(part, flags, 0):
                        raise error
                    return found, whole
                found.append(part)

    def _make_room(self, size: int) -> None:
        """Make the send buffer large enough for `size` bytes in one system call. A transaction cannot be divided."""
        needed = size + _RESERVED
        for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
            if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= needed:
                return
            # EPERM: the next option does not need the right.
            with suppress(PermissionError):
                self._sock.setsockopt(socket.SOL_SOCKET, option, needed)
        have = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        if have < needed:
            words = f"{size} bytes at once, and the socket's buffer has {have}: raise net.core.wmem_max"
            raise RefusedError(errno.EMSGSIZE, words)

    def _send(self, packets: bytes) -> None:
        try:
            self._sock.send(packets)
        except OSError as error:
            # A timeout exception has no errno.
            raise RefusedError(error.errno or errno.ETIMEDOUT) from error

    def _receive(self, first: int) -> list[tuple[int, int, int, bytes]]:
        """Messages of the next packet: type, flags, sequence number, body. Replies to earlier requests, whose call
        was interrupted by an exception, are skipped."""
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
                    raise RefusedError(errno.EBADMSG, "netlink message is truncated")
                if sequence >= first:
                    found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
                offset += (length + 3) & ~3
            if found:
                return found


class Listener:
    """Notifies of changes in the current namespace: `fd` becomes readable, and `drain` reads the notifications.
    `groups`: bits of RTMGRP_* (linux/rtnetlink.h)."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, groups))
        self.fd = self._socket.fileno()

    def read(self) -> list[tuple[int, bytes]] | None:
        """Read the pending notifications, at most 1000: type and body of each. None if some were lost (ENOBUFS)."""
        found: list[tuple[int, bytes]] = []
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return None
            offset = 0
            while offset + 16 <= len(data):
                length, kind, *_ = _MESSAGE.unpack_from(data, offset)
                if length < 16 or offset + length > len(data):
                    return None
                found.append((kind, data[offset + 16 : offset + length]))
                offset += (length + 3) & ~3
        return found

    def drain(self) -> None:
        """Read and discard the pending notifications, at most 1000: `fd` stays readable if there are more. A lost
        notification (ENOBUFS) is a change too, so it is not an error."""
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
    """The error of a reply; None if it reports success."""
    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code == 0:
        return None
    words = ""
    if flags & _ACK_TLVS:
        # After the code comes the header of our request, followed by its body unless the reply is capped.
        skipped = 20 if flags & _CAPPED or len(body) < 8 else 4 + ((struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
        words = string(attributes(body, skipped), _TEXT_ATTRIBUTE)
    return RefusedError(code, words, index)
