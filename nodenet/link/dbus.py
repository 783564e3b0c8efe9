"""One method call without arguments over the system bus of D-Bus.

D-Bus Specification 0.38: the authentication EXTERNAL, and the header fields that a call needs.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYSTEM_BUS = Path("/run/dbus/system_bus_socket")
# Message types and a flag: a service that does not run is not started.
_CALL, _RETURN, _ERROR, _NO_AUTO_START = 1, 2, 3, 2
# Header fields.
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION = 1, 2, 3, 4, 5, 6
_LITTLE_ENDIAN, _VERSION = b"l", 1
# The bus allows 128 MiB. Answers to our calls are short.
_MOST_BYTES = 1 << 16
_SECONDS = 10.0


class Method(NamedTuple):
    destination: str
    path: str
    interface: str
    member: str


class CallError(OSError):
    """The bus or the service answered with an error. `name`: that of D-Bus, for example
    org.freedesktop.DBus.Error.ServiceUnknown."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


_HELLO = Method("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")


def call(method: Method, bus: Path = SYSTEM_BUS) -> None:
    """Call a method and wait for its answer. Raises CallError, and OSError if the bus does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(bus))
        # The bus compares the number, in ASCII and then in hexadecimal, with the credentials of the socket.
        user = str(os.geteuid()).encode().hex()
        connection.sendall(f"\0AUTH EXTERNAL {user}\r\n".encode())
        if not _line(connection).startswith(b"OK "):
            raise CallError("authentication refused")
        connection.sendall(b"BEGIN\r\n")
        for serial, one in enumerate((_HELLO, method), start=1):
            connection.sendall(message(one, serial))
            _wait(connection, serial)


def message(method: Method, serial: int) -> bytes:
    """The bytes of a call: the header with its fields, and no body."""
    fields = b""
    for code, kind, text in (
        (_PATH, b"o", method.path),
        (_INTERFACE, b"s", method.interface),
        (_MEMBER, b"s", method.member),
        (_DESTINATION, b"s", method.destination),
    ):
        data = text.encode()
        fields += _padding(fields, 8) + struct.pack("<BB1sBI", code, 1, kind, 0, len(data)) + data + b"\0"
    head = struct.pack("<cBBBIII", _LITTLE_ENDIAN, _CALL, _NO_AUTO_START, _VERSION, 0, serial, len(fields))
    return head + fields + _padding(fields, 8)


def _wait(connection: socket.socket, serial: int) -> None:
    """Read messages up to the answer to `serial`. Signals come in between."""
    while True:
        head = _exactly(connection, 16)
        order = "<" if head[:1] == _LITTLE_ENDIAN else ">"
        kind, (body, length) = head[1], (struct.unpack_from(f"{order}I", head, at)[0] for at in (4, 12))
        if max(body, length) > _MOST_BYTES:
            raise CallError(f"an answer of {max(body, length)} bytes")
        rest = _exactly(connection, length + -length % 8 + body)
        fields = dict(_fields(rest[:length], order))
        if fields.get(_REPLY_SERIAL) != serial:
            continue
        if kind == _ERROR:
            raise CallError(str(fields.get(_ERROR_NAME, "an error without a name")))
        if kind == _RETURN:
            return


def _fields(data: bytes, order: str) -> Iterator[tuple[int, str | int]]:
    """The header fields of a message. Their values are texts, signatures and numbers of 32 bits."""
    at = 0
    while at + 4 <= len(data):
        code, kind = data[at], data[at + 2 : at + 3]
        at += 4
        if kind == b"g":
            at += data[at] + 2
        else:
            number = struct.unpack_from(f"{order}I", data, at)[0]
            at += 4
            if kind in (b"s", b"o"):
                yield code, data[at : at + number].decode(errors="replace")
                at += number + 1
            else:
                yield code, number
        at += -at % 8


def _padding(data: bytes, to: int) -> bytes:
    return bytes(-len(data) % to)


def _line(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\r\n"):
        found += _exactly(connection, 1)
        if len(found) > _MOST_BYTES:
            raise CallError("a line without an end")
    return found


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = connection.recv(length - len(found))
        if not part:
            raise CallError("the bus closed the connection")
        found += part
    return found
