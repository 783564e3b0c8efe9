"""The probe client: makes many connections at the same time from the namespace in which it runs, with a timeout.

Run it as `python -I -S -E prober.py`; it needs only the standard library. Input on stdin, one JSON object:
    {"timeout": seconds per attempt, "attempts": N, "targets": [{"address": "10.0.0.1", "port": 80, "protocol": "TCP"}]}
Output on stdout, one JSON list in the order of the targets:
    {"outcome": "answered" | "refused" | "timeout" | "unreachable" | "unsupported", "answer": who answered or null,
     "ms": latency of the last attempt, "error": why}

TCP and SCTP: connect, GET /hostname. An established connection counts as answered even without a response. UDP: the
datagram `hostname`, sent several times per attempt. `refused`: a reset or an ICMP port unreachable, so the packet
arrived. `unsupported`: the kernel does not support the protocol and nothing was sent. `unreachable`: any other error
of the system, before or after a packet was sent.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from typing import Any

IPPROTO_SCTP = 132
_SENDS_PER_ATTEMPT = 3
# Sockets open at the same time, below the usual limit of 1024 descriptors.
_CONCURRENT = 512
_REQUEST = b"GET /hostname HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"


class Probe:
    """All attempts for one target. Times are seconds of the monotonic clock."""

    def __init__(self, target: dict[str, Any], timeout: float, attempts: int) -> None:
        self.target = target
        self.timeout = timeout
        self.attempts = attempts
        self.sock: socket.socket | None = None
        self.result: dict[str, Any] | None = None
        self.started = self.next_send = 0.0
        self.connected = False
        self.received = b""

    @property
    def udp(self) -> bool:
        return bool(self.target["protocol"] == "UDP")

    def start(self, poll: select.epoll, now: float) -> None:
        """Start an attempt: open a socket and connect. Ends the probe if the system refuses at once."""
        self.started = now
        self.attempts -= 1
        family = socket.AF_INET6 if ":" in self.target["address"] else socket.AF_INET
        protocol = IPPROTO_SCTP if self.target["protocol"] == "SCTP" else 0
        try:
            self.sock = socket.socket(family, socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM, protocol)
            self.sock.setblocking(False)
            poll.register(self.sock.fileno(), select.EPOLLIN if self.udp else select.EPOLLOUT)
            self.sock.connect((self.target["address"], self.target["port"]))
            if self.udp:
                self._send(now)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)

    def deadline(self) -> float:
        end = self.started + self.timeout
        return min(end, self.next_send) if self.udp else end

    def late(self, poll: select.epoll, now: float) -> None:
        """After the deadline: send again, start another attempt, or end the probe."""
        if now < self.started + self.timeout:
            try:
                self._send(now)
            except OSError as error:
                self._failed(error)
            return
        if self.connected:
            self._end("answered", None, "connected, but nothing was answered")
            return
        self.close()
        if self.attempts > 0:
            self.start(poll, now)
        else:
            self._end("timeout", None, f"no answer within {self.timeout:g} s")

    def ready(self, poll: select.epoll) -> None:
        assert self.sock is not None
        try:
            if self.udp:
                self._end("answered", _text(self.sock.recv(65536)), "")
            elif not self.connected:
                self._established(poll, self.sock)
            else:
                self._read(self.sock)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _established(self, poll: select.epoll, sock: socket.socket) -> None:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, errno.errorcode.get(code, str(code)))
        self.connected = True
        sock.send(_REQUEST)
        poll.modify(sock.fileno(), select.EPOLLIN)

    def _read(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        self.received += data
        if not data:
            head, _, body = self.received.partition(b"\r\n\r\n")
            self._end("answered", _text(body) if head.startswith(b"HTTP/") else None, "")

    def _send(self, now: float) -> None:
        assert self.sock is not None
        self.next_send = now + self.timeout / _SENDS_PER_ATTEMPT
        self.sock.send(b"hostname")

    def _failed(self, error: OSError) -> None:
        if self.connected:
            self._end("answered", None, f"connected, then {_reason(error)}")
        elif error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
            self._end("refused", None, _reason(error))
        elif error.errno == errno.ETIMEDOUT:
            self._end("timeout", None, _reason(error))
        elif error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            self._end("unsupported", None, _reason(error))
        else:
            self._end("unreachable", None, _reason(error))

    def _end(self, outcome: str, answer: str | None, error: str) -> None:
        spent = (time.monotonic() - self.started) * 1000
        self.result = {"outcome": outcome, "answer": answer, "ms": round(spent, 3), "error": error}
        self.close()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def run(probes: list[Probe]) -> list[dict[str, Any]]:
    """Run all probes to their end, at most _CONCURRENT at the same time."""
    poll = select.epoll()
    waiting, active = list(reversed(probes)), list[Probe]()
    while waiting or active:
        while waiting and len(active) < _CONCURRENT:
            active.append(waiting.pop())
            active[-1].start(poll, time.monotonic())
        by_fd = {probe.sock.fileno(): probe for probe in active if probe.sock is not None and probe.result is None}
        if by_fd:
            soonest = min(probe.deadline() for probe in by_fd.values())
            for fd, _ in poll.poll(max(0.0, soonest - time.monotonic())):
                by_fd[fd].ready(poll)
        now = time.monotonic()
        for probe in by_fd.values():
            if probe.result is None and probe.deadline() <= now:
                probe.late(poll, now)
        active = [probe for probe in active if probe.result is None]
    return [probe.result for probe in probes if probe.result is not None]


def main() -> int:
    order = json.load(sys.stdin)
    probes = [Probe(target, order.get("timeout", 1.0), order.get("attempts", 1)) for target in order["targets"]]
    json.dump(run(probes), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
