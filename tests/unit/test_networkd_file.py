"""The file for systemd-networkd, and the call that makes it read the file."""

from __future__ import annotations

import fnmatch
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodenet.cni import wire
from nodenet.cni.conflist import Options
from nodenet.cni.owner import Owner
from nodenet.link import dbus, networkd

AUTH = f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode()
HELLO = dbus.message(dbus.Method("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"), 1)
# What dbus-daemon 1.14 sends after Hello: the answer, and the signal NameAcquired.
WELCOME = bytes.fromhex(
    "6c02010109000000010000003d00000006017300040000003a312e33000000000501750001000000080167000173000007017300140000006f"
    "72672e667265656465736b746f702e4442757300000000040000003a312e33006c04010109000000020000008d00000001016f00150000002f"
    "6f72672f667265656465736b746f702f4442757300000002017300140000006f72672e667265656465736b746f702e4442757300000000"
    "030173000c0000004e616d6541637175697265640000000006017300040000003a312e3300000000080167000173000007017300140000006f"
    "72672e667265656465736b746f702e4442757300000000040000003a312e3300"
)


def test_every_interface_of_a_pod_matches_and_no_other(tmp_path: Path) -> None:
    assert networkd.leave_alone("cni0", tmp_path)
    assert not networkd.leave_alone("cni0", tmp_path)
    assert networkd.leave_alone("br1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [networkd.FILE]
    lines = (tmp_path / networkd.FILE).read_text().splitlines()
    assert lines[-2:] == ["[Link]", "Unmanaged=yes"]
    [match] = [line.removeprefix("Name=").split() for line in lines if line.startswith("Name=")]

    def matches(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in match)

    assert match[0] == "br1"
    for number in range(50):
        assert matches(wire.host_ifname(Owner(f"container{number}", "eth0")))
    for other in ("eth0", "ens5", "veth1a2b3c4", "docker0", "veth0", "bond0"):
        assert not matches(other), other
    assert f"Name={Options().bridge} " in networkd.text(Options().bridge)


def answer(kind: int, serial: int, error: str = "", order: str = "<") -> bytes:
    """A return (2) or an error (3), with a body of one text."""
    fields = b""
    if error:
        fields += struct.pack(f"{order}BB1sBI", 4, 1, b"s", 0, len(error)) + error.encode() + b"\0"
        fields += bytes(-len(fields) % 8)
    fields += struct.pack(f"{order}BB1sBI", 5, 1, b"u", 0, serial)
    fields += bytes(-len(fields) % 8) + struct.pack("<BB1sB", 8, 1, b"g", 0) + b"\1s\0"
    body = struct.pack(f"{order}I", 3) + b"why\0"
    head = (b"l" if order == "<" else b"B") + bytes((kind, 0, 1))
    head += struct.pack(f"{order}III", len(body), 77, len(fields))
    return head + fields + bytes(-len(fields) % 8) + body


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Callable[[bytes], tuple[Path, list[bytes]]]]:
    """A bus that accepts one client, and answers the call after Hello with the given bytes. Returns its path and what
    it received."""
    listener = socket.socket(socket.AF_UNIX)
    path, received = tmp_path / "bus", []
    listener.bind(str(path))
    listener.listen()

    def serve(last: bytes) -> tuple[Path, list[bytes]]:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                for length, answered in (
                    (len(AUTH), b"OK 1234\r\n"),
                    (len(b"BEGIN\r\n" + HELLO), WELCOME),
                    (len(dbus.message(networkd.RELOAD, 2)), last),
                ):
                    received.append(connection.recv(length, socket.MSG_WAITALL))
                    connection.sendall(answered)

        thread.append(threading.Thread(target=run))
        thread[0].start()
        return path, received

    thread: list[threading.Thread] = []
    yield serve
    if thread:
        thread[0].join(5)
    listener.close()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_running_networkd_is_reloaded(bus: Callable[[bytes], tuple[Path, list[bytes]]], order: str) -> None:
    path, received = bus(answer(2, 2, order=order))
    assert networkd.reload(path)
    assert received == [AUTH, b"BEGIN\r\n" + HELLO, dbus.message(networkd.RELOAD, 2)]
    for text in networkd.RELOAD:
        assert text.encode() + b"\0" in received[-1]


def test_a_networkd_that_does_not_run_is_no_error(
    bus: Callable[[bytes], tuple[Path, list[bytes]]], tmp_path: Path
) -> None:
    assert not networkd.reload(tmp_path / "none")
    path, _ = bus(answer(3, 2, "org.freedesktop.DBus.Error.ServiceUnknown"))
    assert not networkd.reload(path)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (answer(3, 2, "org.freedesktop.DBus.Error.AccessDenied"), "AccessDenied"),
        (b"", "the bus closed the connection"),
        (b"l\2\0\1" + struct.pack("<III", 1 << 30, 1, 16), "an answer of"),
    ],
)
def test_a_refusal_is_an_error(bus: Callable[[bytes], tuple[Path, list[bytes]]], last: bytes, words: str) -> None:
    path, _ = bus(last)
    with pytest.raises(OSError, match=words):
        networkd.reload(path)
