"""What server.py needs of unix sockets."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from pathlib import Path

from nodenet.cni import protocol
from nodenet.cni.errors import CniError, Code
from nodenet.cni.protocol import Reply


def listen(path: Path, backlog: int) -> socket.socket:
    """A socket that only root can call. Bound under another name and moved: no caller ever meets one without
    listener or with wide permissions. Raises OSError as bind does."""
    temporary = path.with_name(f".cni.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(temporary))
        temporary.chmod(0o600)
        made.listen(backlog)
        temporary.rename(path)
    except BaseException:
        made.close()
        temporary.unlink(missing_ok=True)
        raise
    return made


def end_request(connection: socket.socket) -> None:
    """What has arrived can still be read; who waits for the rest is told that it ends there."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def require_caller(connection: socket.socket) -> None:
    """Raises CniError when the caller has gone: it was killed, and its runtime's DEL may be done already."""
    poll = select.poll()
    poll.register(connection, 0)
    if poll.poll(0):
        raise CniError(Code.TRY_AGAIN, "its caller has gone: nothing was done")


def send(connection: socket.socket, seconds: float, reply: Reply) -> None:
    """The answer, and its end: the caller waits for that. Raises OSError; TimeoutError after so many seconds."""
    connection.settimeout(seconds)
    connection.sendall(protocol.pack_reply(reply))
    connection.shutdown(socket.SHUT_RDWR)


def somebody_listens(path: Path) -> bool:
    """Raises OSError, TimeoutError among it, when that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
