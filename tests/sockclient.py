"""A process in a network namespace and a cgroup that opens sockets and uses them as a test tells it, step by step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# One JSON line in, one out. Sockets are named by the test. A receive that gets nothing ends after two seconds.
_CLIENT = """
import json, os, socket, sys
if sys.argv[1]:
    open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
named = {}
def udp(name, host=None, port=0, family=None):
    v6 = family == 6 or (family is None and host is not None and ":" in host)
    s = named[name] = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(2)
    if host is not None:
        s.bind((host, port))
def listen(name, host, port):
    named[name] = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
def tcp(name, host, port): named[name] = socket.create_connection((host, port), 2)
def device(name, interface): named[name].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
def connect(name, host, port): named[name].connect((host, port))
def peer(name): return named[name].getpeername()[:2]
def own(name): return named[name].getsockname()[:2]
def send(name, data): named[name].send(data.encode())
def sendto(name, data, host, port): named[name].sendto(data.encode(), (host, port))
def receive(name):
    data, source = named[name].recvfrom(100)
    return data.decode(), source and source[:2]
def answer(name):
    data, source = named[name].recvfrom(100)
    named[name].sendto(data, source)
    return data.decode()
def cookie(name): return int.from_bytes(named[name].getsockopt(socket.SOL_SOCKET, 57, 8), "little")
for line in sys.stdin:
    step, *arguments = json.loads(line)
    try:
        result = {"result": globals()[step](*arguments)}
    except OSError as error:
        result = {"errno": error.errno or 110}
    print(json.dumps(result), flush=True)
"""


class SocketProcess:
    """`do` runs one step. A step that fails raises OSError here with the same errno (a timeout: ETIMEDOUT)."""

    def __init__(self, prefix: Sequence[str], cgroup: Path | None = None) -> None:
        command = [*prefix, sys.executable, "-I", "-S", "-c", _CLIENT, str(cgroup or "")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @classmethod
    def inside(cls, netns: str, cgroup: Path) -> Self:
        return cls(["nsenter", f"--net=/run/netns/{netns}"], cgroup)

    def do(self, step: str, *arguments: Any) -> Any:
        """Names of steps and their arguments: the functions of the client."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([step, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], f"{step}{arguments}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()
