"""Runs in a pod and calls its targets all the time. Uses only the standard library.

    python3 probe.py '[["name", KIND, "address", port, allowed], ...]' [SECONDS]

KIND: `tcp` and `udp` open a socket for each call, `keep` and `stay` (UDP) use one socket for all calls, `rare` is a
`stay` that calls only every few seconds.

Every SECONDS it prints one JSON line {name: {"ok", "bad", "slow", "notes"}} with the counts since the start, until
SIGTERM. Allowed targets must answer. Denied ones must answer neither with data nor with a refusal. `slow`: an answer
took as long as with a lost and repeated SYN; on a busy machine this alone proves nothing.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time

EVERY = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
PATIENCE = 10.0  # seconds to wait for an answer of an allowed target
SILENCE = 0.3  # seconds to wait for an answer of a denied target
SLOW = 0.9
PAUSE = {"tcp": 0.05, "keep": 0.05, "udp": 0.05, "stay": 0.05, "rare": 5.0}
NOTES = 20

stopping = threading.Event()


class Target(threading.Thread):
    def __init__(self, name: str, kind: str, address: str, port: int, allowed: bool) -> None:
        super().__init__(daemon=True)
        self.label, self.kind, self.peer, self.allowed = name, kind, (address, port), allowed
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.counts = {"ok": 0, "bad": 0, "slow": 0}
        self.notes: list[str] = []
        self.kept: socket.socket | None = None

    def run(self) -> None:
        stay = self.stay
        calls = {"tcp": self.connect, "keep": self.keep, "udp": self.datagram, "stay": stay, "rare": stay}
        call = calls[self.kind]
        while not stopping.is_set():
            started, moment = time.monotonic(), time.time()
            try:
                answered, why = call(), ""
            except ConnectionRefusedError as error:
                # A refusal comes from the pod, so the packet has arrived.
                answered, why = not self.allowed, str(error)
            except OSError as error:
                answered, why = False, str(error)
                self.forget()
            took = time.monotonic() - started
            self.counts["ok" if answered == self.allowed else "bad"] += 1
            is_slow = answered and took > SLOW
            self.counts["slow"] += is_slow
            if (answered != self.allowed or is_slow) and len(self.notes) < NOTES:
                stamp = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03}"
                self.notes.append(f"{stamp} {'answered' if answered else 'no answer'} after {took:.2f} s {why}")
            stopping.wait(PAUSE[self.kind])

    def open(self, kind: int) -> socket.socket:
        sock = socket.socket(self.family, kind)
        sock.settimeout(PATIENCE if self.allowed else SILENCE)
        return sock

    def connect(self) -> bool:
        with self.open(socket.SOCK_STREAM) as sock:
            sock.connect(self.peer)
            sock.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
            return sock.recv(1000).startswith(b"HTTP")

    def keep(self) -> bool:
        if self.kept is None:
            self.kept = self.open(socket.SOCK_STREAM)
            self.kept.connect(self.peer)
        self.kept.sendall(b"x" * 100)
        left = 100
        while left:
            data = self.kept.recv(left)
            if not data:
                raise OSError("closed by the server")
            left -= len(data)
        return True

    def datagram(self) -> bool:
        with self.open(socket.SOCK_DGRAM) as sock:
            sock.sendto(b"hostname", self.peer)
            return bool(sock.recvfrom(100)[0])

    def stay(self) -> bool:
        if self.kept is None:
            self.kept = self.open(socket.SOCK_DGRAM)
            self.kept.connect(self.peer)
        self.kept.send(b"hostname")
        return bool(self.kept.recv(100))

    def forget(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None


def main() -> None:
    targets = [Target(*spec) for spec in json.loads(sys.argv[1])]
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    for target in targets:
        target.start()
    while not stopping.is_set():
        stopping.wait(EVERY)
        print(json.dumps({t.label: t.counts | {"notes": list(t.notes)} for t in targets}), flush=True)
    # Do not wait for a pending call, which may take long. It is not counted.


if __name__ == "__main__":
    main()
