"""Helpers of server.py for unix sockets."""

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
    """A listening socket to which only root can connect. It is bound under another name and renamed, so that no
    client finds a socket without listener or with wide permissions. Raises OSError as bind does."""
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
    """Shut down reading: data that has arrived can still be read, followed by the end."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def require_caller(connection: socket.socket) -> None:
    """Raises CniError if the caller has closed the connection: it was killed, and the runtime's DEL may have
    finished already."""
    poll = select.poll()
    # Without requested events, poll reports only a hang-up or an error.
    poll.register(connection, 0)
    if poll.poll(0):
        raise CniError(Code.TRY_AGAIN, "the caller has gone, so nothing was done")


def send(connection: socket.socket, seconds: float, reply: Reply) -> None:
    """Send the reply and shut down, because the caller reads until the end. Raises OSError; TimeoutError after
    `seconds`."""
    connection.settimeout(seconds)
    connection.sendall(protocol.pack_reply(reply))
    connection.shutdown(socket.SHUT_RDWR)


def has_listener(path: Path) -> bool:
    """True if a process listens at the path. Raises OSError (also TimeoutError) if that cannot be determined."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
