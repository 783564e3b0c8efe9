"""Both programs, as processes, on loopback."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.lab import prober, standin

PYTHON = [sys.executable, "-I", "-S", "-E"]


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    tcp, udp = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    read, write = os.pipe()
    argv = ["--name", "me", "--port", f"{tcp}/TCP", "--port", f"{udp}/UDP", "--ready-fd", str(write)]
    server = subprocess.Popen([*PYTHON, str(standin.__file__), *argv], pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as reports:
        assert reports.readline() == "ready\n"
    yield tcp, udp
    server.terminate()
    server.wait()


def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_http_tells_the_pod_name(ports: tuple[int, int]) -> None:
    for path in (b"/", b"/hostname", b"/any/thing?x=1"):
        head, _, body = ask(ports[0], b"GET " + path + b" HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body == b"me"


def test_http_head_has_no_body_and_clientip_tells_the_client(ports: tuple[int, int]) -> None:
    assert ask(ports[0], b"HEAD / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n")
    assert b"\r\n\r\n127.0.0.1:" in ask(ports[0], b"GET /clientip HTTP/1.0\r\n\r\n")


def test_connections_stay_open_for_further_requests(ports: tuple[int, int]) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert ask(ports[0], request * 3).count(b"HTTP/1.1 200 OK") == 3


def test_a_request_in_pieces_is_understood(ports: tuple[int, int]) -> None:
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=5) as sock:
        for byte in b"GET / HTTP/1.0\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert b"".join(iter(lambda: sock.recv(4096), b"")).endswith(b"me")


@pytest.mark.parametrize("data", [b"hello", b"G", b"GETTING", b"\0" * 300_000, b""])
def test_other_bytes_are_echoed(ports: tuple[int, int], data: bytes) -> None:
    assert ask(ports[0], data) == data


def test_ipv6_is_answered_on_the_same_port(ports: tuple[int, int]) -> None:
    assert ask(ports[0], b"hello", "::1") == b"hello"


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_udp_echoes_and_tells_the_name(ports: tuple[int, int], host: str, family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, ports[1]))
        for data, answer in ((b"ping", b"ping"), (b"hostname", b"me"), (b"\n", b"me")):
            sock.send(data)
            assert sock.recv(100) == answer


def test_udp_answers_from_the_address_that_was_asked(ports: tuple[int, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"x", ("127.0.0.7", ports[1]))
        assert sock.recvfrom(10)[1] == ("127.0.0.7", ports[1])


def test_a_port_in_use_is_reported(ports: tuple[int, int]) -> None:
    argv = [*PYTHON, str(standin.__file__), "--name", "me", "--port", f"{ports[0]}/TCP"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: port {ports[0]}/TCP: Address already in use\n"


def probe(*targets: dict[str, Any], timeout: float = 0.2) -> list[dict[str, Any]]:
    order = json.dumps({"timeout": timeout, "attempts": 2, "targets": targets})
    argv = [*PYTHON, str(Path(prober.__file__))]
    done = subprocess.run(argv, input=order, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_prober_distinguishes_answers_refusals_and_timeouts(ports: tuple[int, int]) -> None:
    closed = free_port(socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        results = probe(
            {"address": "127.0.0.1", "port": ports[0], "protocol": "TCP"},
            {"address": "::1", "port": ports[1], "protocol": "UDP"},
            {"address": "127.0.0.1", "port": closed, "protocol": "TCP"},
            {"address": "127.0.0.1", "port": silent.getsockname()[1], "protocol": "UDP"},
            {"address": "127.0.0.1", "port": free_port(socket.SOCK_DGRAM), "protocol": "UDP"},
        )
    assert [r["outcome"] for r in results] == ["answered", "answered", "refused", "timeout", "refused"]
    assert [r["answer"] for r in results[:2]] == ["me", "me"]


def test_a_connection_without_an_answer_counts_as_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        (result,) = probe({"address": "127.0.0.1", "port": mute.getsockname()[1], "protocol": "TCP"})
    assert result["outcome"] == "answered"
    assert result["answer"] is None


def test_more_targets_than_descriptors(ports: tuple[int, int]) -> None:
    results = probe(*[{"address": "127.0.0.1", "port": ports[0], "protocol": "TCP"}] * 1500, timeout=5.0)
    assert [r["answer"] for r in results] == ["me"] * 1500


def test_an_unsupported_protocol_is_not_reported_as_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(prober.socket, "socket", refuse)
    found = prober.run([prober.Probe({"address": "127.0.0.1", "port": 82, "protocol": "SCTP"}, 0.1, 2)])
    assert [result["outcome"] for result in found] == ["unsupported"]
