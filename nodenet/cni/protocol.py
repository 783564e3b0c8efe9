"""The protocol between the executable and the agent, over the unix socket. It is not JSON, so that a small C program
can implement it.

Numbers are 32-bit big-endian.

    request: "NNC1"  length environment  length stdin
    reply:   "NNR1"  status  length stdout

The environment is NAME=VALUE strings, each terminated by a NUL; `status` is the exit status. One request per
connection. A message that is shorter than its lengths say is invalid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REQUEST_MAGIC = b"NNC1"
REPLY_MAGIC = b"NNR1"
# Bytes. A runtime's configuration with a prevResult has a few thousand.
MAX_ENVIRONMENT = 1 << 17
MAX_STDIN = 1 << 22


class ProtocolError(Exception):
    """The message is not of this protocol, too long, or truncated."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The exit status and standard output of one verb."""

    status: int
    stdout: bytes


def pack_request(environment: Mapping[str, str], stdin: bytes) -> bytes:
    """The bytes of a request. Environment variables may contain any byte, as paths may."""
    pairs = b"".join(f"{name}={value}".encode(errors="surrogateescape") + b"\0" for name, value in environment.items())
    return REQUEST_MAGIC + struct.pack("!I", len(pairs)) + pairs + struct.pack("!I", len(stdin)) + stdin


def read_request(receive: Callable[[], bytes]) -> tuple[dict[str, str], bytes]:
    """Environment and stdin of a request. `receive` returns its next bytes, or b"" at the end. Raises ProtocolError."""
    data = bytearray()

    def take(length: int) -> bytes:
        while len(data) < length:
            if not (piece := receive()):
                raise ProtocolError("the request is truncated")
            data.extend(piece)
        taken = bytes(data[:length])
        del data[:length]
        return taken

    def block(limit: int, what: str) -> bytes:
        (length,) = struct.unpack("!I", take(4))
        if length > limit:
            raise ProtocolError(f"{what} of {length} bytes is over {limit}")
        return take(length)

    if (magic := take(4)) != REQUEST_MAGIC:
        raise ProtocolError(f"expected {REQUEST_MAGIC!r}, got {magic!r}")
    environment = block(MAX_ENVIRONMENT, "environment")
    return unpack_environment(environment), block(MAX_STDIN, "stdin")


def unpack_environment(pairs: bytes) -> dict[str, str]:
    """NAME=VALUE strings as a dict. Raises ProtocolError for a pair without "=" or without its NUL."""
    if pairs and not pairs.endswith(b"\0"):
        raise ProtocolError("environment: the last string has no NUL")
    found = {}
    for pair in pairs.split(b"\0")[:-1]:
        name, separator, value = pair.decode(errors="surrogateescape").partition("=")
        if not separator or not name:
            raise ProtocolError(f"environment: {pair[:40]!r} is not NAME=VALUE")
        found[name] = value
    return found


def pack_reply(reply: Reply) -> bytes:
    return REPLY_MAGIC + struct.pack("!II", reply.status, len(reply.stdout)) + reply.stdout


def unpack_reply(data: bytes) -> Reply:
    """The reverse of pack_reply. Raises ProtocolError if bytes are missing or left over."""
    if len(data) < 12 or data[:4] != REPLY_MAGIC:
        raise ProtocolError("not a reply")
    status, length = struct.unpack_from("!II", data, 4)
    if len(data) != 12 + length:
        raise ProtocolError(f"reply of {length} bytes, got {len(data) - 12}")
    return Reply(status, data[12:])
