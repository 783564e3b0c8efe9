"""The agent's side of the socket when things go badly: an end in the middle of a burst, callers that are killed or say
nothing, no file descriptors, hooks that never end."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodenet.cni import protocol
from nodenet.cni.agent import AgentHooks
from nodenet.cni.attach import Step
from nodenet.cni.server import CniServer
from nodenet.link import netns
from nodenet.model import Endpoint

pytestmark = pytest.mark.kernel
BURST = 100


async def nothing(endpoint: Endpoint) -> None:
    """A hook that is quick, as the agent's is."""
    await asyncio.sleep(0.001)


async def never(endpoint: Endpoint) -> None:
    """A hook of an agent whose reconcile loop has ended."""
    await asyncio.Event().wait()


@contextmanager
def serving(
    world: Any,
    on_add: Any = nothing,
    on_del: Any = nothing,
    *,
    workers: int = 16,
    step: Step = lambda name: None,
    **hooks: Any,
) -> Iterator[Callable[..., None]]:
    """An agent's server in the node's namespace, on an event loop of its own; gives what closes it. No thread stays."""
    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()
    server = CniServer(world.run_dir, AgentHooks(on_add, on_del, **hooks), workers=workers, step=step)
    thread = threading.Thread(target=lambda: (netns.enter(world.node), loop.run_forever()))  # type: ignore[func-returns-value]
    thread.start()

    def run(what: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(what, loop).result(60)  # type: ignore[arg-type]

    def close(grace: float = 5.0) -> None:
        run(server.close(grace))

    run(server.start())
    try:
        yield close
    finally:
        close()
        run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert set(threading.enumerate()) <= before


def code(done: subprocess.CompletedProcess[bytes]) -> int:
    assert done.returncode == (1 if b'"code"' in done.stdout else 0), done
    return int(json.loads(done.stdout)["code"]) if done.returncode else 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("on_add", "grace"), [(nothing, 5.0), (never, 0.3)])
def test_an_end_in_the_middle_of_a_burst(world: Any, on_add: Any, grace: float) -> None:
    """Every caller gets its answer or "try again", at once; what was answered stands, and a DEL of each clears all."""
    conf = world.conf(requireAgent=True, ipMasq=True)
    pods = [world.pod() for _ in range(BURST)]
    files = open_files()
    with serving(world, on_add) as close, ThreadPoolExecutor(BURST) as pool:
        calls = [pool.submit(world.execute, "ADD", f"c{n}", pod, conf) for n, pod in enumerate(pods)]
        while not (world.run_dir / "endpoints").exists() or len(list((world.run_dir / "endpoints").glob("*.json"))) < 8:
            time.sleep(0.002)
        started = time.monotonic()
        close(grace)
        took = time.monotonic() - started
        codes = [code(call.result()) for call in calls]
    assert set(codes) <= {0, 11}
    assert took < 5
    added = {n for n, found in enumerate(codes) if found == 0}
    print(f"{len(added)} of {BURST} answered, closed in {took:.2f} s")
    for n, pod in enumerate(pods):
        assert world.interfaces(pod) == (["lo", "eth0"] if n in added else ["lo"])
    for n in added:
        assert world.call("DEL", f"c{n}", pods[n], world.conf(ipMasq=True)).status == 0
    assert world.left() == []
    assert open_files() <= files


def test_an_end_while_callers_say_nothing(world: Any) -> None:
    """Half requests: more than there are threads."""
    with serving(world) as close:
        halves = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for half in halves:
            half.connect(str(world.run_dir / "cni.sock"))
            half.sendall(b"NNC1\0\0")
        time.sleep(0.1)
        started = time.monotonic()
        close()
        took = time.monotonic() - started
        for half in halves:
            assert half.recv(1) == b""
            half.close()
    assert took < 3


def test_a_killed_caller_leaves_nothing_behind(world: Any) -> None:
    """A runtime kills its plugin and calls DEL. The ADD, which has waited for a thread until then, must not come after
    that."""
    gate = threading.Event()

    async def gated(endpoint: Endpoint) -> None:
        await asyncio.to_thread(gate.wait, 20)

    conf = world.conf()
    with serving(world, gated, workers=1), ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.execute, "ADD", "c0", world.pod(), conf)
        while not list((world.run_dir / "endpoints").glob("*.json")):
            time.sleep(0.01)
        pod = world.pod()
        caller = netns.popen(world.node, [world.program], env=world.env("ADD", "c1", pod), stdin=subprocess.PIPE)
        caller.stdin.write(conf)
        caller.stdin.close()
        time.sleep(0.2)
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        gate.set()
        assert code(first.result()) == 0
        assert code(world.execute("STATUS", "", "", conf)) == 0
        assert world.interfaces(pod) == ["lo"]
        assert code(world.execute("DEL", "c0", "", conf)) == 0
    assert world.left() == []


def test_no_file_descriptors(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Callers wait until there are some again, and the log is not flooded meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(world):
        message = protocol.pack_request(world.env("VERSION", "", ""), world.conf())
        callers = [socket.socket(socket.AF_UNIX) for _ in range(24)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            # accept(2) takes its number before it waits: each thread has one for one more call.
            for caller in callers:
                caller.connect(str(world.run_dir / "cni.sock"))
                caller.sendall(message)
            time.sleep(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for caller in callers:
            caller.settimeout(5)
            assert caller.recv(4) == b"NNR1"
            caller.close()
    told = [record for record in caplog.records if "cannot be accepted" in record.getMessage()]
    assert 1 <= len(told) <= 2


def test_duplicate_detection_takes_no_turns(world: Any) -> None:
    """ADDs that wait for the kernel's second must not do that two at a time."""
    together = threading.Barrier(6)

    def step(name: str) -> None:
        if name == "settle":
            together.wait(10)

    conf = world.conf(enabledad=True)
    pods = [world.pod() for _ in range(6)]
    with serving(world, step=step), ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(world.execute, "ADD", f"c{n}", pod, conf) for n, pod in enumerate(pods)]
        assert [code(call.result()) for call in calls] == [0] * 6
        for n in range(6):
            assert code(world.execute("DEL", f"c{n}", "", conf)) == 0
    assert world.left() == []
