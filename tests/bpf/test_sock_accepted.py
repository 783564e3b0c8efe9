"""An accepted socket stays one: it is not disconnected and connected to somebody else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nodenet.abi import DropReason, EventType

from .test_sock import LOCAL, Sockets, sockets

pytestmark = pytest.mark.kernel

__all__ = ["sockets"]

# AF_UNSPEC disconnects (connect(2)); Python knows no such address.
CLIENT = """
import ctypes, json, os, socket, sys
cgroup, host, kind = sys.argv[1:]
open(cgroup + "/cgroup.procs", "w").write(str(os.getpid()))
libc = ctypes.CDLL(None, use_errno=True)
v6 = ":" in host
family = socket.AF_INET6 if v6 or kind == "mapped" else socket.AF_INET
bound = "::" if family == socket.AF_INET6 else host
listener = socket.socket(family, socket.SOCK_STREAM); listener.bind((bound, 9000)); listener.listen()
other = socket.socket(family, socket.SOCK_STREAM); other.bind((bound, 9001)); other.listen()
client = socket.create_connection((host, 9000), 5)
accepted, _ = listener.accept()
used = client if kind == "connected" else accepted
used.settimeout(None)
assert libc.connect(used.fileno(), ctypes.create_string_buffer(16), 16) == 0, ctypes.get_errno()
out = []
for port in (0, 0) if kind != "bound" else (9002, 9002):
    try:
        used.bind((bound, port))
    except OSError as error:
        pass
    try:
        target = "::ffff:" + host if kind == "mapped" else host, 9001
        if kind == "fast open":
            used.sendto(b"x", 0x20000000, target)  # MSG_FASTOPEN
        else:
            used.connect(target)
        out.append("connected")
        break
    except OSError as error:
        out.append(error.errno)
print(json.dumps(out))
"""


def tried(sockets: Sockets, host: str, kind: str) -> list[object]:
    prefix = ["nsenter", f"--net=/run/netns/{sockets.netns}", sys.executable, "-I", "-S", "-c", CLIENT]
    done = subprocess.run(
        [*prefix, str(sockets.cgroup), host, kind], capture_output=True, text=True, timeout=30, check=True
    )
    result: list[object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("version", "kind"),
    [(4, "accepted"), (6, "accepted"), (4, "bound"), (6, "bound"), (4, "mapped"), (4, "fast open"), (6, "fast open")],
)
def test_an_accepted_socket_connects_to_nobody(sockets: Sockets, version: int, kind: str) -> None:
    assert tried(sockets, LOCAL[version], kind) == [111, 111]
    event = sockets.datapath.events()[-1]
    assert (event.type, -event.reason) == (EventType.DROP, DropReason.UNKNOWN_CONNECTION_TRACKING_STATE)
    assert (str(event.daddr), event.dport) == (LOCAL[version], 9001)


@pytest.mark.parametrize("version", [4, 6])
def test_a_socket_that_connected_may_do_so_again(sockets: Sockets, version: int) -> None:
    assert tried(sockets, LOCAL[version], "connected") == ["connected"]
    assert sockets.datapath.events() == []
