"""ADDs that wait for their pods hold up nothing: more of them than there are threads, and a DEL, a STATUS and another
pod's ADD go through meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from nodenet.cni.adds import Adds
from nodenet.cni.errors import CniError, Code
from nodenet.cni.request import Request
from nodenet.model import Endpoint

from .test_server_stress import code, open_files, serving

pytestmark = pytest.mark.kernel
MANY = 48


class Agent:
    """Pods whose name begins with "gone" are not known before `known` is set."""

    def __init__(self) -> None:
        self.known = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.forgotten: list[str] = []
        self.order: list[str] = []

    async def on_add(self, endpoint: Endpoint) -> None:
        self.order.append(endpoint.pod.name)
        if endpoint.pod.name.startswith("gone"):
            self.waiting.release()
            while not self.known.is_set():  # noqa: ASYNC110 a thread sets it
                await asyncio.sleep(0.01)

    async def on_del(self, endpoint: Endpoint) -> None:
        self.forgotten.append(endpoint.pod.name)


@contextmanager
def many_waiting(world: Any, agent: Agent, count: int = MANY, **options: Any) -> Iterator[list[Future[Any]]]:
    """So many ADDs wait in the agent; their calls."""
    pods = [world.pod() for _ in range(count)]
    with serving(world, agent.on_add, agent.on_del, **options), ThreadPoolExecutor(count + 1) as pool:
        calls = [pool.submit(world.execute, "ADD", f"gone{n}", pod) for n, pod in enumerate(pods)]
        for _ in pods:
            assert agent.waiting.acquire(timeout=30)
        yield calls
        agent.known.set()


@pytest.mark.parametrize("workers", [16, 1])
def test_other_verbs_go_through(world: Any, workers: int) -> None:
    agent = Agent()
    with many_waiting(world, agent, workers=workers) as calls:
        assert code(world.execute("ADD", "other", world.pod())) == 0
        assert code(world.execute("STATUS", "")) == 0
        assert code(world.execute("DEL", "other")) == 0
        assert agent.forgotten == ["other"]
        assert not any(call.done() for call in calls)
        agent.known.set()
        assert {code(call.result()) for call in calls} == {0}
        for n in range(MANY):
            assert code(world.execute("DEL", f"gone{n}")) == 0
    assert world.left() == []


def test_a_del_ends_its_own_add(world: Any) -> None:
    """Not after the ADD's time, and nothing of it comes after the DEL."""
    agent = Agent()
    files = open_files()
    with many_waiting(world, agent) as calls:
        for n in range(MANY):
            assert code(world.execute("DEL", f"gone{n}")) == 0
        assert {code(call.result()) for call in calls} == {11}
        assert all(b"a DEL for this container arrived" in call.result().stdout for call in calls)
        assert sorted(agent.forgotten) == sorted(f"gone{n}" for n in range(MANY))
    assert world.left() == []
    assert open_files() <= files


def called(monkeypatch: pytest.MonkeyPatch, method: str) -> threading.Event:
    """Set once a method of Adds has been called."""
    event, original = threading.Event(), getattr(Adds, method)

    def spy(self: Adds, *args: Any) -> None:
        original(self, *args)
        event.set()

    monkeypatch.setattr(Adds, method, spy)
    return event


def test_a_del_ends_an_add_that_is_at_work(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent()
    wiring, go_on = threading.Event(), called(monkeypatch, "abandon")

    def step(name: str) -> None:
        if name == "settle":
            wiring.set()
            assert go_on.wait(20)

    with serving(world, agent.on_add, agent.on_del, step=step), ThreadPoolExecutor(2) as pool:
        added = pool.submit(world.execute, "ADD", "gone", world.pod())
        assert wiring.wait(20)
        deleted = pool.submit(world.execute, "DEL", "gone")
        assert code(deleted.result()) == 0
        assert code(added.result()) == 11
    assert world.left() == []


def test_a_pod_that_is_gone_is_refused_before_anything_is_made(world: Any) -> None:
    agent = Agent()

    def expected(request: Request) -> None:
        if request.pod.name.startswith("gone"):
            raise CniError(Code.TRY_AGAIN, f"pod {request.pod}: removed")

    with serving(world, agent.on_add, agent.on_del, expected=expected), ThreadPoolExecutor(MANY) as pool:
        pods = [world.pod() for _ in range(MANY)]
        calls = [pool.submit(world.execute, "ADD", f"gone{n}", pod) for n, pod in enumerate(pods)]
        assert {code(call.result()) for call in calls} == {11}
        assert (agent.order, agent.forgotten, world.left()) == ([], [], [])
        assert code(world.execute("ADD", "other", world.pod())) == 0
        assert code(world.execute("DEL", "other")) == 0


def test_an_end_refuses_those_that_wait_and_those_that_queue(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread at work, the rest are queued behind an ADD that another IPAM plugin, say, holds up."""
    agent = Agent()
    wiring, go_on = threading.Event(), called(monkeypatch, "refuse_all")

    def step(name: str) -> None:
        if name == "lease":
            wiring.set()
            assert go_on.wait(20)

    # One that comes after the end must not do it alone.
    conf = world.conf(requireAgent=True)
    pods = [world.pod() for _ in range(6)]
    with serving(world, agent.on_add, agent.on_del, step=step, workers=1) as close, ThreadPoolExecutor(7) as pool:
        calls = [pool.submit(world.execute, "ADD", f"gone{n}", pod, conf) for n, pod in enumerate(pods)]
        assert wiring.wait(20)
        close(0.1)
        assert {code(call.result()) for call in calls} == {11}
    assert world.left() == []
