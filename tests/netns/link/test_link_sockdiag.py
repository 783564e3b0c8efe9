"""Sockets of a namespace, listed and ended by the kernel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nodenet.link import netns as namespaces
from nodenet.link.netlink import RefusedError
from nodenet.link.sockdiag import CLOSE, ESTABLISHED, LISTEN, SockDiag, Socket

pytestmark = pytest.mark.kernel

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
# Socket family, the address that a client names, the address that the kernel is asked for.
FAMILIES = {
    "ipv4": (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    "ipv6": (socket.AF_INET6, "::1", "::1"),
    "mapped": (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
}
_SO_COOKIE = 57


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


@pytest.fixture
def diag(netns: str) -> Iterator[SockDiag]:
    with SockDiag(netns) as found:
        yield found


def find(diag: SockDiag, sock: socket.socket, protocol: int = UDP, state: int = ESTABLISHED) -> Socket:
    (found,) = (one for one in diag.sockets(protocol, state) if one.cookie == cookie(sock))
    return found


def udp(netns: str, family: int, peer: str) -> socket.socket:
    sock = namespaces.open_socket(netns, family, socket.SOCK_DGRAM)
    sock.connect((peer, 53))
    sock.setblocking(False)
    return sock


@pytest.mark.parametrize("name", FAMILIES)
def test_a_connected_udp_socket_is_ended_and_its_twin_stays(netns: str, diag: SockDiag, name: str) -> None:
    family, peer, address = FAMILIES[name]
    with udp(netns, family, peer) as sock, udp(netns, family, peer) as twin:
        found = find(diag, sock)
        assert (found.remote, found.remote_port) == (ip_address(address), 53)
        assert (found.local, found.local_port) == (ip_address(address), sock.getsockname()[1])
        assert diag.destroy(found)
        with pytest.raises(ConnectionAbortedError):
            sock.recv(1)
        assert not diag.destroy(found)
        assert twin.getpeername()[1] == 53
        assert [one.cookie for one in diag.sockets(UDP, ESTABLISHED)] == [cookie(twin)]


def test_a_socket_that_took_the_place_of_another_is_not_ended(netns: str, diag: SockDiag) -> None:
    with udp(netns, socket.AF_INET, "127.0.0.1") as sock:
        found, port = find(diag, sock), sock.getsockname()[1]
    with namespaces.open_socket(netns, socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        other.connect(("127.0.0.1", 53))
        assert find(diag, other).identity[:-8] == found.identity[:-8]
        assert not diag.destroy(found)
        assert other.getpeername()[1] == 53


@pytest.mark.parametrize("name", FAMILIES)
def test_states_and_protocols_are_told_apart(netns: str, diag: SockDiag, name: str) -> None:
    family, peer, _ = FAMILIES[name]
    with (
        namespaces.open_socket(netns, family, socket.SOCK_DGRAM) as unconnected,
        namespaces.open_socket(netns, family, socket.SOCK_STREAM) as server,
        namespaces.open_socket(netns, family, socket.SOCK_STREAM) as client,
    ):
        unconnected.bind((peer, 0))
        server.bind((peer, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        assert list(diag.sockets(UDP, ESTABLISHED)) == []
        assert find(diag, unconnected, UDP, CLOSE).remote_port == 0
        assert find(diag, server, TCP, LISTEN).local_port == server.getsockname()[1]
        assert diag.destroy(find(diag, client, TCP))
        with pytest.raises(ConnectionAbortedError):
            client.send(b"x")
        # The kernel of the other side was told with a reset.
        with server.accept()[0] as accepted, pytest.raises(ConnectionResetError):
            accepted.recv(1)


def test_other_namespaces_are_not_seen(two: tuple[str, str]) -> None:
    with udp(two[0], socket.AF_INET, "127.0.0.1"), SockDiag(two[1]) as diag:
        assert list(diag.sockets(UDP, ESTABLISHED)) == []


def test_whether_the_kernel_ends_sockets(diag: SockDiag, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diag.can_destroy(UDP)
    for code, able in ((errno.EOPNOTSUPP, False), (errno.EPERM, False), (errno.ENOENT, True)):

        def refuse(*_: object, code: int = code) -> None:
            raise RefusedError(code)

        monkeypatch.setattr(diag._kernel, "run", refuse)
        assert diag.can_destroy(UDP) is able
    monkeypatch.setattr(diag._kernel, "dump", refuse)
    assert not diag.can_destroy(UDP)
