"""The program in the pods of `nodenet connectivity test`: servers, and connections with an answer for each.

    peer.py serve                                    TCP (HTTP) and UDP on ports 8080 and 8081, until it is ended
    peer.py ask [--timeout S] [--until ok|denied --seconds S] [--times N] TARGET...

A TARGET is `tcp4://10.1.2.3:8080`, `udp6://[fd00::1]:8080`, `tls4://name:443`, `open4://name:22` (a TCP handshake) or
`dns://name?expect=ADDRESS,...`. One line of JSON is printed for each: its result, and the time that it took. It uses
only the standard library of Python 3.9 and newer, because it runs in any image that has one.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PORTS = (8080, 8081)
_FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}
_LONGEST = 4096
# Seconds between two tries of --until and --times.
_PAUSE = 0.2
_ERRORS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "denied by the kernel",
    errno.EPERM: "denied by the kernel",
}
# The results that show that something between the two ends does not let a connection pass.
DENIED = ("timeout", "refused", "reset", "unreachable", "denied by the kernel")


def describe_me(client: tuple[Any, ...]) -> bytes:
    """What a server answers: its pod, and the client's address as it arrived."""
    address = str(client[0]).removeprefix("::ffff:")
    return json.dumps({"server": socket.gethostname(), "client": address}).encode()


def serve() -> None:
    for port in PORTS:
        for kind, loop in ((socket.SOCK_STREAM, _serve_tcp), (socket.SOCK_DGRAM, _serve_udp)):
            listener = _listener(kind, port)
            threading.Thread(target=loop, args=(listener,), daemon=True).start()
    print("serving", flush=True)
    threading.Event().wait()


def _listener(kind: int, port: int) -> socket.socket:
    """A socket of both families; of IPv4 where the kernel has no IPv6."""
    try:
        found = socket.socket(socket.AF_INET6, kind)
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        address = "::"
    except OSError:
        found = socket.socket(socket.AF_INET, kind)
        address = ""
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((address, port))
    if kind == socket.SOCK_STREAM:
        found.listen(128)
    return found


def _serve_tcp(listener: socket.socket) -> None:
    while True:
        connection, client = listener.accept()
        threading.Thread(target=_answer, args=(connection, client), daemon=True).start()


def _answer(connection: socket.socket, client: tuple[Any, ...]) -> None:
    try:
        with connection:
            connection.settimeout(5)
            connection.recv(_LONGEST)
            body = describe_me(client)
            head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
    except OSError:
        # The client is gone. The next one is not affected.
        return


def _serve_udp(listener: socket.socket) -> None:
    while True:
        _, client = listener.recvfrom(_LONGEST)
        try:
            listener.sendto(describe_me(client), client)
        except OSError:
            continue


def ask(target: str, timeout: float) -> dict[str, Any]:
    """One connection. `result` is ok, one of DENIED, or what else went wrong."""
    began = time.monotonic()
    found: dict[str, Any] = {"target": target}
    try:
        found.update(_connect(target, timeout), result="ok")
    except socket.timeout:  # noqa: UP041 - another class than TimeoutError before Python 3.10
        found["result"] = "timeout"
    except ssl.SSLError as error:
        found["result"] = f"TLS: {error.reason or error}"
    except socket.gaierror as error:
        found["result"] = f"no address: {error.strerror}"
    except OSError as error:
        found["result"] = _ERRORS.get(error.errno or 0, str(error))
    except ValueError as error:
        found["result"] = f"unexpected answer: {error}"
    found["seconds"] = round(time.monotonic() - began, 4)
    return found


def _connect(target: str, timeout: float) -> dict[str, Any]:
    parts = urlsplit(target)
    host = parts.hostname or ""
    if parts.scheme == "dns":
        return _resolve(host, parts.query.partition("expect=")[2])
    protocol, family = parts.scheme[:-1], _FAMILIES[parts.scheme[-1]]
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    address = socket.getaddrinfo(host, parts.port, family, kind)[0][4]
    with socket.socket(family, kind) as connection:
        connection.settimeout(timeout)
        connection.connect(address)
        if protocol == "open":
            return {}
        if protocol == "tls":
            return _handshake(connection)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = _read(connection, kind)
    answer = json.loads(data.rpartition(b"\r\n\r\n")[2])
    return {"server": str(answer["server"]), "client": str(answer["client"])}


def _resolve(host: str, expected: str) -> dict[str, Any]:
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    if expected and found != set(expected.split(",")):
        raise ValueError(f"{', '.join(sorted(found))}, expected {expected.replace(',', ', ')}")
    return {"addresses": sorted(found)}


def _read(connection: socket.socket, kind: int) -> bytes:
    if kind == socket.SOCK_DGRAM:
        return connection.recv(_LONGEST)
    data = b""
    while len(data) < _LONGEST:
        part = connection.recv(_LONGEST)
        if not part:
            break
        data += part
    return data


def _handshake(connection: socket.socket) -> dict[str, Any]:
    """Whose certificate it is does not matter here: the question is whether packets come and go."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(connection) as secure:
        return {"tls": secure.version()}


def matches(result: str, wanted: str) -> bool:
    return result in DENIED if wanted == "denied" else result == "ok"


def ask_until(target: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ask until the result is the wanted one `times` times in a row, or until the time is over."""
    began, in_a_row, tries = time.monotonic(), 0, 0
    settled: float | None = None
    while True:
        start = time.monotonic()
        found = ask(target, options.timeout)
        tries += 1
        if matches(found["result"], options.until):
            in_a_row += 1
            settled = start - began if settled is None else settled
            if in_a_row >= options.times:
                return {**found, "tries": tries, "settled": round(settled, 3)}
        else:
            in_a_row, settled = 0, None
        if time.monotonic() - began >= options.seconds:
            # A mixture of results is not the wanted one, even if the last is.
            return {**found, "tries": tries, "settled": None}
        time.sleep(_PAUSE)


def ask_all(options: argparse.Namespace, answer: Callable[[dict[str, Any]], None]) -> None:
    """All targets at the same time; the answers in their order."""
    results: list[dict[str, Any]] = [{} for _ in options.targets]

    def one(place: int, target: str) -> None:
        results[place] = ask_until(target, options)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(options.targets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        answer(result)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve")
    asking = commands.add_parser("ask")
    asking.add_argument("--timeout", type=float, default=2.0)
    asking.add_argument("--until", choices=["ok", "denied"], default="ok")
    asking.add_argument("--seconds", type=float, default=0.0)
    asking.add_argument("--times", type=int, default=1)
    asking.add_argument("targets", nargs="+")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        serve()
    else:
        ask_all(options, lambda result: print(json.dumps(result), flush=True))


if __name__ == "__main__":
    # The pod's PID 1 has no default handlers: without this a pod ends only after its grace period.
    import signal

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    main(sys.argv[1:])
