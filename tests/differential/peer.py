"""A process in a pod, on a node or outside: answers with its name and the client's address, and calls addresses.

Run it as `python -I -S -E peer.py NAME PORT`; port 0: no server. One JSON line in: {"timeout": seconds, "groups": [[{
"address", "port", "protocol", "tries", "source"}, ...], ...]}. One JSON line out: for each group and call a list of
[outcome, who answered, the client's address that it saw]. The calls of a group are made one after the other.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_AT_ONCE = 24
# A datagram is sent again if there is no answer.
_SENDS = 2


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _serve(name: str, port: int) -> None:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", port))

    def accept() -> None:
        while True:
            sock, peer = listener.accept()
            with sock:
                sock.sendall(f"{name} {_plain(peer[0])}".encode())

    def receive() -> None:
        while True:
            _, peer = datagrams.recvfrom(100)
            datagrams.sendto(f"{name} {_plain(peer[0])}".encode(), peer)

    for target in (accept, receive):
        threading.Thread(target=target, daemon=True).start()


def _open(call: dict[str, Any], timeout: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in call["address"] else socket.AF_INET
    kind = socket.SOCK_DGRAM if call["protocol"] == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind)
    sock.settimeout(timeout)
    if call.get("source"):
        sock.bind((call["source"], 0))
    return sock


def _call(call: dict[str, Any], timeout: float) -> list[str]:
    sends = _SENDS if call["protocol"] == "udp" else 1
    with _open(call, timeout / sends) as sock:
        try:
            sock.connect((call["address"], call["port"]))
            for left in range(sends - 1, -1, -1):
                if call["protocol"] == "udp":
                    sock.send(b"?")
                try:
                    name, _, client = sock.recv(200).decode().partition(" ")
                    return ["answered", name, client]
                except TimeoutError:
                    if not left:
                        raise
        except TimeoutError:
            return ["timeout", "", ""]
        except OSError as error:
            return [_outcome(error), "", ""]
    raise AssertionError("unreachable")


def _outcome(error: OSError) -> str:
    known = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "refused", errno.EPERM: "denied"}
    return known.get(error.errno or 0, errno.errorcode.get(error.errno or 0, str(error)))


def _group(calls: list[dict[str, Any]], timeout: float) -> list[list[list[str]]]:
    return [[_call(call, timeout) for _ in range(call["tries"])] for call in calls]


def main(name: str, port: int) -> None:
    if port:
        _serve(name, port)
    print(json.dumps("ready"), flush=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for line in sys.stdin:
            asked = json.loads(line)
            found = list(pool.map(lambda group: _group(group, asked["timeout"]), asked["groups"]))  # noqa: B023
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
