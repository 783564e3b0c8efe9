"""Lists and destroys the sockets of a network namespace: sock_diag(7), linux/inet_diag.h.

Destroying uses SOCK_DESTROY (Linux 4.5 with CONFIG_INET_DIAG_DESTROY; CAP_NET_ADMIN in the namespace): the next call of
the owner fails with ECONNABORTED; TCP sends a reset, UDP is disconnected. The kernel compares the cookie, so it never
destroys a newer socket with the same addresses.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from nodenet.endpoint import IPAddress
from nodenet.link import netns
from nodenet.link.netlink import Netlink, RefusedError, Request

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
# family, protocol, extensions, padding, states
_REQUEST = struct.Struct("=BBBxI")
# ports, addresses, interface, cookie; ports and addresses in network byte order
_ID = struct.Struct("=2s2s16s16sIII")
# family, state, timer, retransmissions; the identity follows
_ANSWER_HEADER = 4

# include/net/tcp_states.h. A UDP socket has ESTABLISHED while it is connected, and CLOSE otherwise.
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket. An IPv4-mapped address is converted to IPv4. `identity`: the kernel's identification of the
    socket. `ifindex`: the device to which it is bound; 0: none."""

    family: int
    protocol: int
    state: int
    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    cookie: int
    identity: bytes
    ifindex: int = 0


class SockDiag:
    """A sock_diag socket. `target` is a namespace's name, path or file descriptor; None: the current one.

    For one thread at a time. Calls block while the kernel searches; they do not take the RTNL lock.
    """

    def __init__(self, target: netns.Target | None = None) -> None:
        self._kernel = Netlink(netns.open_socket(target, socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._kernel.close()

    def sockets(self, protocol: int, *states: int) -> Iterator[Socket]:
        """Sockets of both families in one of these states. Raises RefusedError: ENOENT if the kernel has no
        sock_diag for the protocol."""
        mask = sum(1 << state for state in states)
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, protocol, 0, mask) + bytes(_ID.size)
            for answer in self._kernel.dump(_BY_FAMILY, body):
                yield _socket(answer, protocol)

    def destroy(self, found: Socket) -> bool:
        """Destroy a socket. False: it is gone or was replaced by another one. Raises RefusedError (see can_destroy)."""
        body = _REQUEST.pack(found.family, found.protocol, 0, 1 << found.state) + found.identity
        try:
            self._kernel.run(Request(_DESTROY, body))
        except RefusedError as error:
            if error.code in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        return True

    def can_destroy(self, protocol: int) -> bool:
        """True if this kernel can list and destroy sockets of the protocol. Tries it with an identity that no socket
        has."""
        nothing = _ID.pack(b"\0\1", b"\0\1", bytes(16), bytes(16), 0, 0, 0)
        try:
            next(self.sockets(protocol, ESTABLISHED), None)
        except RefusedError:
            return False
        try:
            self._kernel.run(Request(_DESTROY, _REQUEST.pack(socket.AF_INET, protocol, 0, 1 << CLOSE) + nothing))
        except RefusedError as error:
            # ENOENT: the kernel has searched for the socket, so it supports SOCK_DESTROY.
            return error.code == errno.ENOENT
        return True


def _socket(answer: bytes, protocol: int) -> Socket:
    family, state = answer[0], answer[1]
    identity = answer[_ANSWER_HEADER : _ANSWER_HEADER + _ID.size]
    local_port, remote_port, local, remote, ifindex, low, high = _ID.unpack(identity)
    return Socket(
        family,
        protocol,
        state,
        _address(family, local),
        int.from_bytes(local_port, "big"),
        _address(family, remote),
        int.from_bytes(remote_port, "big"),
        high << 32 | low,
        identity,
        ifindex,
    )


def _address(family: int, data: bytes) -> IPAddress:
    if family == socket.AF_INET:
        return IPv4Address(data[:4])
    address = IPv6Address(data)
    return address.ipv4_mapped or address
