"""The load generator (perf/crr.c): compiled once per content, run as server and as client inside a pod."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from nodenet.errors import CannotRunError
from perf import tools

SOURCE = Path(__file__).parent / "crr.c"
FLAGS = ("-O2", "-Wall", "-Wextra")
# Milliseconds of one slice of the stream workload.
SLICE_MS = 20


def compiler() -> str:
    """`cc`, or else clang, which the eBPF programs need anyway."""
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return found
    raise CannotRunError("no C compiler is installed, so the load maker cannot be built", "apt-get install gcc")


def build(cache: Path) -> Path:
    """The executable of the load generator, from the cache or compiled now."""
    command = [compiler(), *FLAGS]
    key = hashlib.sha256("\0".join(command).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    target = cache / f"crr-{key}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    done = subprocess.run([*command, "-o", str(draft), str(SOURCE)], capture_output=True, text=True, check=False)
    if done.returncode:
        draft.unlink(missing_ok=True)
        raise CannotRunError(f"the load maker does not compile:\n{done.stderr.strip()}", "apt-get install libc6-dev")
    draft.rename(target)
    return target


@dataclass(frozen=True, slots=True)
class Place:
    """Where a load generator runs: a namespace, an optional cgroup, and the CPU to which it is pinned (None: not
    pinned)."""

    netns: str
    cgroup: Path | None = None
    cpu: int | None = 0

    def environment(self) -> dict[str, str]:
        found = {"CRR_NETNS": str(tools.NETNS / self.netns)}
        if self.cgroup:
            found["CRR_CGROUP"] = str(self.cgroup)
        if self.cpu is not None:
            found["CRR_CPU"] = str(self.cpu)
        return found


class Block(NamedTuple):
    """The result of one command to a client: its figures, and the client's voluntary (`waits`) and involuntary
    (`taken`) context switches."""

    values: list[float]
    waits: int
    taken: int


class _Client:
    """A client process that stays in its place and reads commands line by line, so that no process is started between
    blocks."""

    def __init__(self, executable: str, place: Place) -> None:
        self._place = place
        self._process = subprocess.Popen(
            [executable, "client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place.environment()},
            start_new_session=True,
        )

    def ask(self, *words: str) -> Block:
        """Send one command. Raises CannotRunError with the client's message; the client has ended then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(" ".join(words) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith("\n"):
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip() or "no answer"
            raise CannotRunError(f"{said} ({' '.join(words)}, in {self._place.netns})")
        *values, waits, taken = line.split()
        return Block([float(value) for value in values], int(waits), int(taken))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()


class LoadMaker:
    """Starts servers and clients of the load generator. One client per place stays until `close` or until it fails."""

    def __init__(self, executable: Path) -> None:
        self.executable = str(executable)
        self._clients: dict[Place, _Client] = {}

    def __enter__(self) -> LoadMaker:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all clients. Namespaces and cgroups can be removed only after that."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _ask(self, place: Place, *words: str) -> Block:
        client = self._clients.get(place)
        if client is None:
            client = self._clients[place] = _Client(self.executable, place)
        try:
            return client.ask(*words)
        except BaseException:
            # Close the client also after an interrupt. Otherwise the rest of its answer would be read as the next
            # answer.
            self._clients.pop(place).close()
            raise

    @contextmanager
    def serving(self, place: Place, port: int, tag: str) -> Iterator[None]:
        """Run a server that answers with `tag` over TCP and UDP, until the block ends."""
        with self._started(place, "server", str(port), tag) as process:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                assert process.stderr is not None
                raise CannotRunError(f"the server does not start: {process.stderr.read().strip()}")
            yield

    def block(self, place: Place, workload: str, address: str, port: int, count: int, warmup: int) -> Block:
        """One block of crr, rr or udp: microseconds of each round."""
        found = self._ask(place, workload, address, str(port), str(count), str(warmup))
        return found._replace(values=[value / 1000 for value in found.values])

    def stream(self, place: Place, address: str, port: int, slices: int) -> Block:
        """One block of a stream: bytes per second of each time slice of one connection."""
        return self._ask(place, "stream", address, str(port), str(slices), str(SLICE_MS))

    def spin(self, place: Place, count: int) -> list[float]:
        """Microseconds of equal computations, to measure the machine's noise."""
        return [int(word) / 1000 for word in self._client(place, "spin", str(count))]

    def flush_conntrack(self, netns: str) -> None:
        self._ask(Place(netns, cpu=None), "flush")

    @contextmanager
    def until(self, place: Place, address: str, port: int, tag: str, seconds: float) -> Iterator[Waiter]:
        """Start a client that connects repeatedly, until the server `tag` answers or `seconds` have passed. Yields when
        any server has answered its first connection."""
        milliseconds = str(int(seconds * 1000))
        with self._started(place, "until", address, str(port), tag, milliseconds) as process:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                assert process.stderr is not None
                raise CannotRunError(f"no connection to {address}:{port}: {process.stderr.read().strip()}")
            yield Waiter(process)

    def _client(self, place: Place, *arguments: str) -> list[str]:
        return tools.output([self.executable, *arguments], environment=place.environment()).split()

    @contextmanager
    def _started(self, place: Place, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [self.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place.environment()},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            # Kill the process group, because the server has a child process for datagrams.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()


class Waiter:
    """A running `until` client."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds_since(self, monotonic_ns: int) -> float:
        """Seconds from then until the first connection that the expected server answered. Raises CannotRunError after
        the timeout."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        word = self._process.stdout.readline().strip()
        if not word:
            raise CannotRunError(self._process.stderr.read().strip())
        return (int(word) - monotonic_ns) / 1e9


def now() -> int:
    """CLOCK_MONOTONIC in ns, the clock of the load generator."""
    return time.monotonic_ns()
