"""The stand-in for a pod's containers: a server that answers with the pod's name on every declared containerPort.

Run it as `python -I -S -E standin.py --name POD [--port 80/TCP]... [--ready-fd FD]`. It uses few modules, all of the
standard library, because a lab starts one process per pod.

TCP and SCTP: an HTTP request gets the pod name as plain text (/clientip: the client's address); any other bytes are
echoed.
UDP: the datagram `hostname`, or an empty one, gets the pod name; any other is echoed.
--ready-fd gets one line. When all ports are open: `ready`, with `; SCTP: <reason>` if the kernel does not support SCTP.
Otherwise: `error: <what>`, and the process exits with status 1.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import sys

IPPROTO_SCTP = 132
IP_PKTINFO = 8
IPV6_RECVPKTINFO = 49
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")
_CHUNK = 65536
# Bytes waiting to be sent to a client above which the server stops reading from it, for clients that send but never
# read.
_MAX_WAITING = 1 << 20
_MAX_HEAD = 65536
# The uid under which the server answers clients. Other processes may run as `nobody`, so it has a uid of its own.
_USER = 64999


class Connection:
    """One accepted stream. If it starts with an HTTP method, the server answers HTTP; otherwise it echoes."""

    def __init__(self, sock: socket.socket, name: bytes) -> None:
        self.sock = sock
        self.name = name
        self.inbox = b""
        self.outbox = b""
        self.http: bool | None = None
        self.ending = False

    def wants(self) -> int:
        """The epoll events to wait for; 0: the connection is finished."""
        reads = select.EPOLLIN if not self.ending and len(self.outbox) < _MAX_WAITING else 0
        return reads | (select.EPOLLOUT if self.outbox else 0)

    def readable(self) -> None:
        data = self.sock.recv(_CHUNK)
        if not data:
            self.ending = True
            if self.http is None:
                self.outbox += self.inbox
            return
        self.inbox += data
        if self.http is None:
            self._classify()
        if self.http is False:
            self.outbox += self.inbox
            self.inbox = b""
        elif self.http:
            self._requests()

    def writable(self) -> None:
        sent = self.sock.send(self.outbox)
        self.outbox = self.outbox[sent:]

    def _classify(self) -> None:
        if self.inbox.startswith(_METHODS):
            self.http = True
        elif not any(method.startswith(self.inbox) for method in _METHODS):
            self.http = False

    def _requests(self) -> None:
        while True:
            head, found, rest = self.inbox.partition(b"\r\n\r\n")
            if not found:
                self.ending = self.ending or len(self.inbox) > _MAX_HEAD
                return
            length = _content_length(head)
            if len(rest) < length:
                return
            self.inbox = rest[length:]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        line, _, fields = head.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        path, _, version = target.partition(b" ")
        body = _peer(self.sock) if path.split(b"?")[0] == b"/clientip" else self.name
        close = version != b"HTTP/1.1" or b"connection: close" in fields.lower()
        self.outbox += b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n" % len(body)
        self.outbox += b"Connection: close\r\n\r\n" if close else b"\r\n"
        if method != b"HEAD":
            self.outbox += body
        self.ending = self.ending or close


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def _peer(sock: socket.socket) -> bytes:
    host, port = sock.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()


class Server:
    """All of a pod's ports in one epoll loop."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.poll = select.epoll()
        self.listeners: dict[int, socket.socket] = {}
        self.datagrams: dict[int, socket.socket] = {}
        self.connections: dict[int, Connection] = {}

    def open(self, port: int, protocol: str) -> None:
        """Raises OSError when the port cannot be opened."""
        if protocol == "UDP":
            sock = _bind(port, socket.SOCK_DGRAM, 0)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            self.datagrams[sock.fileno()] = sock
        else:
            sock = _bind(port, socket.SOCK_STREAM, IPPROTO_SCTP if protocol == "SCTP" else 0)
            sock.listen(1024)
            self.listeners[sock.fileno()] = sock
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            for fd, events in self.poll.poll():
                if fd in self.listeners:
                    self._accept(self.listeners[fd])
                elif fd in self.datagrams:
                    self._datagram(self.datagrams[fd])
                elif fd in self.connections:
                    self._connection(self.connections[fd], events)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # the client has closed, or no descriptor is free; epoll reports the socket again
            return
        sock.setblocking(False)
        if sock.proto != IPPROTO_SCTP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[sock.fileno()] = Connection(sock, self.name)
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def _connection(self, connection: Connection, events: int) -> None:
        fd = connection.sock.fileno()
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                connection.readable()
            if connection.outbox:
                connection.writable()
        except BlockingIOError:
            pass
        except OSError:  # reset by the client
            connection.ending, connection.outbox = True, b""
        wanted = connection.wants()
        if wanted:
            self.poll.modify(fd, wanted)
            return
        self.poll.unregister(fd)
        del self.connections[fd]
        connection.sock.close()

    def _datagram(self, sock: socket.socket) -> None:
        """Answer from the address to which the request was sent. A node (hostNetwork) has several."""
        try:
            data, control, _, sender = sock.recvmsg(_CHUNK, 128)
            answer = self.name if data.strip() in (b"", b"hostname") else data
            kept = [
                (level, kind, value if level == socket.IPPROTO_IPV6 else _answer_from(value))
                for level, kind, value in control
            ]
            sock.sendmsg([answer], kept, 0, sender)
        except OSError:  # an ICMP error for an earlier answer, or no route back: the client sees no answer
            return


def _answer_from(pktinfo: bytes) -> bytes:
    """From the struct in_pktinfo {ifindex, spec_dst, addr} of a datagram, make the one for the answer."""
    return bytes(4) + pktinfo[8:12] + bytes(4)


def _bind(port: int, kind: int, protocol: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, kind, protocol)
        address = "::"
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        sock = socket.socket(socket.AF_INET, kind, protocol)
        address = "0.0.0.0"
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
    sock.bind((address, port))
    return sock


def _arguments(argv: list[str]) -> tuple[str, list[tuple[int, str]], int]:
    name, ports, ready = "", list[tuple[int, str]](), -1
    pairs = iter(argv)
    for option in pairs:
        value = next(pairs)
        if option == "--name":
            name = value
        elif option == "--port":
            port, _, protocol = value.partition("/")
            ports.append((int(port), protocol or "TCP"))
        elif option == "--ready-fd":
            ready = int(value)
        else:
            raise SystemExit(f"unknown option {option}")
    return name, ports, ready


def main(argv: list[str]) -> int:
    name, ports, ready = _arguments(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server(name)
    report = "ready"
    for port, protocol in ports:
        try:
            server.open(port, protocol)
        except OSError as error:
            if protocol == "SCTP" and error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                report += f"; SCTP: port {port} is not served: {error.strerror}"
                continue
            _report(ready, f"error: port {port}/{protocol}: {error.strerror}")
            return 1
    _drop_root()
    _report(ready, report)
    server.run()
    return 0


def _drop_root() -> None:
    """Change to an unprivileged user after the ports are open and before data of clients is read. Changing the user ids
    also drops all capabilities."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_USER, _USER, _USER)
        os.setresuid(_USER, _USER, _USER)


def _report(fd: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    if fd >= 0:
        os.write(fd, line.encode() + b"\n")
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
