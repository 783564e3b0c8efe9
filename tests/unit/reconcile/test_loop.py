"""The loop: nothing before every list is in, few runs, retries, resync, and who waits gets what was promised."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from nodenet import kinds
from nodenet.abi import U32, AddressKey, State
from nodenet.compile import Compiler, DesiredState, LocalNode
from nodenet.kinds import KINDS
from nodenet.reconcile.loop import Hooks, ReconcileLoop
from nodenet.reconcile.plan import POLICY_TABLES, SERVICE_TABLES
from nodenet.store import Op, Snapshot, Store
from nodenet.testing import FakeClock, FakeTable, Fault, FaultyTable
from tests.unit.compile.build import UDP, endpoint, pod, service, slice_, store_of

LOCAL = LocalNode("node1")
NAMES = (*SERVICE_TABLES, *POLICY_TABLES)


def fake_tables(**limits: int) -> dict[str, FakeTable]:
    tables = {name: FakeTable(name, max_entries=limits.get(name, 1 << 20)) for name in NAMES}
    tables["nn_state"].update(U32(0), State(0))
    return tables


class Agent:
    """Store, compiler and loop joined as the agent joins them."""

    def __init__(self, store: Store, tables: Any, clock: FakeClock | None = None) -> None:
        self.store = store
        self.compiler = Compiler()
        self.clock = clock or FakeClock()
        self.compiled: list[int] = []
        self.members: list[Any] = []
        self.loop = ReconcileLoop(
            self.snapshot,
            self.compile,
            tables,
            self.clock,
            hooks=Hooks(self.compiler.restore, self.compiler.settle, self.members.append),
            run_blocking=self.at_once,
        )

    def snapshot(self) -> Snapshot | None:
        return self.store.snapshot() if self.store.synced else None

    def compile(self, snapshot: Snapshot) -> DesiredState:
        self.compiled.append(snapshot.revision)
        return self.compiler.compile(snapshot, LOCAL)[0]

    async def at_once(self, work: Callable[[], None]) -> None:
        work()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ReconcileLoop]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield self.loop
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def change(self, *objects: Any) -> None:
        for obj in objects:
            self.store.apply(Op.MODIFIED, obj)
        self.loop.trigger()
        await within(self.loop.wait_for(self.store.revision))


async def within(what: Awaitable[None]) -> None:
    async with asyncio.timeout(5):
        await what


async def turns(number: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


def some_store() -> Store:
    return store_of(
        pod("web", "10.0.1.9"), endpoint(1, "web", "10.0.1.9"), service("s", "10.96.0.1"), slice_("s", "10.0.1.9")
    )


async def test_nothing_is_written_before_every_list_is_in() -> None:
    store = Store()
    for kind in KINDS[:-1]:
        store.replace(kind, ())
    tables = fake_tables()
    agent = Agent(store, tables)
    store.apply(Op.ADDED, service("s", "10.96.0.1"))
    async with agent.running() as loop:
        loop.trigger()
        await turns()
        assert agent.compiled == []
        assert not list(tables["nn_frontend"].items())
        store.replace(kinds.ENDPOINT, ())
        loop.trigger()
        await within(loop.wait_for(store.revision))
    assert len(list(tables["nn_frontend"].items())) == 2


async def test_triggers_are_coalesced_and_who_waits_finds_it_in_the_kernel() -> None:
    tables = fake_tables()
    agent = Agent(some_store(), tables)
    async with agent.running() as loop:
        await within(loop.wait_for(agent.store.revision))
        runs = loop.stats.runs
        for number in range(2, 30):
            agent.store.apply(Op.ADDED, endpoint(number, "web", f"10.0.2.{number}"))
            loop.trigger()
        await within(loop.wait_for(agent.store.revision))
        assert loop.stats.runs == runs + 1
        assert len(list(tables["nn_endpoint"].items())) == 29


async def test_a_restart_writes_nothing_that_was_right() -> None:
    tables = fake_tables()
    first = Agent(some_store(), tables)
    async with first.running():
        await first.change(slice_("s", "10.0.1.9", "10.0.1.10"))
        await first.change(slice_("s", "10.0.1.10", "10.0.1.11"))
    second = Agent(first.store, tables)
    async with second.running() as loop:
        await within(loop.wait_for(first.store.revision))
        assert loop.stats.first_writes is not None
        assert loop.stats.first_writes.total() == 0
        await second.change(service("t", "10.96.0.2"))
        assert loop.stats.writes == {"nn_frontend": 2, "nn_revnat": 1}


async def test_members_are_told_as_the_kernel_has_them() -> None:
    ports = [("", UDP, 53)]
    inner = fake_tables(nn_revnat=2)
    fault = Fault(1 << 20)
    agent = Agent(some_store(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    async with agent.running() as loop:
        await within(loop.wait_for(agent.store.revision))
        await agent.change(service("dns", "10.96.0.2", ports=ports))
        await agent.change(slice_("dns", "10.0.1.1", "10.0.1.2", ports=ports))
        assert {backend.addr.packed[3] for backend in agent.members[-1].values()} == {1, 2}
        # A Service without room is left as it was; what left the other one is told all the same.
        agent.store.apply(Op.ADDED, service("more", "10.96.0.3", ports=ports))
        await agent.change(slice_("dns", "10.0.1.2", ports=ports))
        assert loop.stats.failing
        assert agent.members[-1] == dict(inner["nn_member"].items())
        assert {backend.addr.packed[3] for backend in agent.members[-1].values()} == {2}
        # The second write fails, the new member's: nobody knows whether it was made.
        told = len(agent.members)
        fault.at = fault.writes + 1
        await agent.change(slice_("dns", "10.0.1.3", ports=ports))
        assert "nn_member: set" in loop.stats.last_error
        assert len(agent.members) == told


async def test_a_failed_write_is_named_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fault = Fault(0, times=2)
    inner = fake_tables()
    agent = Agent(some_store(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    async with agent.running() as loop:
        await turns()
        assert (loop.stats.failing, loop.stats.errors) == (1, 2)
        assert "nn_" in loop.stats.last_error
        assert "out of memory" in loop.stats.last_error
        agent.clock.advance(0.1)
        await turns()
        assert loop.stats.failing == 1
        agent.clock.advance(0.2)
        await within(loop.wait_for(agent.store.revision))
        assert loop.stats.failing == 0
        assert loop.stats.last_sync == agent.clock.now
    assert "up to date again" in caplog.text
    assert len(list(inner["nn_frontend"].items())) == 3


async def test_a_full_service_map_does_not_hold_up_policy() -> None:
    tables = fake_tables(nn_frontend=2)
    agent = Agent(some_store(), tables)
    async with agent.running() as loop:
        await within(loop.wait_for(agent.store.revision))
        assert loop.stats.service_revision < agent.store.revision
        assert loop.stats.last_error.startswith("nn_frontend: set FrontendKey(")
        assert AddressKey(ip_address("10.0.1.9")) in dict(tables["nn_endpoint"].items())


async def test_a_fault_in_the_compiler_is_told_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(some_store(), fake_tables())
    whole, agent.compiler.compile = agent.compiler.compile, None  # type: ignore[method-assign,assignment]
    async with agent.running() as loop:
        await turns()
        assert loop.stats.errors == 1
        assert "TypeError" in loop.stats.last_error
        agent.compiler.compile = whole  # type: ignore[method-assign]
        agent.clock.advance(1)
        await within(loop.wait_for(agent.store.revision))
    assert "Traceback" in caplog.text


async def test_a_resync_repairs_what_others_changed_and_counts_it() -> None:
    tables = fake_tables()
    agent = Agent(some_store(), tables)
    async with agent.running() as loop:
        await within(loop.wait_for(agent.store.revision))
        right = {name: dict(table.items()) for name, table in tables.items()}
        for key, _ in list(tables["nn_endpoint"].items()):
            tables["nn_endpoint"].delete(key)
        tables["nn_backend"].update(U32(1), next(iter(right["nn_backend"].values())))
        agent.clock.advance(59)
        await turns()
        assert loop.stats.drift == 0
        agent.clock.advance(2)
        await turns()
        assert loop.stats.drift == 2
        found = {name: dict(table.items()) for name, table in tables.items()}
        assert {n: t for n, t in found.items() if n != "nn_state"} == {
            n: t for n, t in right.items() if n != "nn_state"
        }
        assert right["nn_state"][U32(0)].policy_revision % 2 == 0


async def test_no_write_is_made_after_it_was_stopped() -> None:
    release = asyncio.Event()
    made: list[bool] = []

    async def slowly(work: Callable[[], None]) -> None:
        await release.wait()
        work()
        made.append(True)

    agent = Agent(some_store(), fake_tables())
    agent.loop._run_blocking = slowly
    task = asyncio.create_task(agent.loop.run())
    await turns()
    task.cancel()
    await turns()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made


@pytest.mark.parametrize(("took", "waits"), [(0.05, False), (0.5, True)])
async def test_who_waits_does_not_sit_out_a_short_runs_rest(took: float, waits: bool) -> None:
    """A pod's start is not put off; but a run that is long rests, or the agent would do nothing else."""
    agent = Agent(some_store(), fake_tables())

    async def slowly(work: Callable[[], None]) -> None:
        agent.clock.advance(took)
        work()

    agent.loop._run_blocking = slowly
    async with agent.running() as loop:
        await within(loop.wait_for(agent.store.revision))
        await turns()
        agent.store.apply(Op.ADDED, endpoint(2, "web", "10.0.2.2"))
        loop.trigger()
        await turns()
        assert loop.stats.policy_revision < agent.store.revision, "nobody waits: the loop rests"
        waiter = asyncio.create_task(loop.wait_for(agent.store.revision))
        await turns()
        assert waiter.done() is not waits
        agent.clock.advance(took)
        await within(waiter)
