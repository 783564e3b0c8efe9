"""The loop: no writes before all lists have arrived, few runs, retries, resync, and the guarantees of wait_for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from netpolicy.types import Direction, NetworkPolicy, PortRule, Protocol, Rule, Selector
from nodenet import kinds
from nodenet.abi import U32, AddressKey
from nodenet.agent.stale import stale
from nodenet.engine import SMALL_CHANGES, Compiled, Engine
from nodenet.model import Namespace
from nodenet.reconcile.grace import NoPrograms
from nodenet.reconcile.loop import LAST_RETRY_SECONDS
from nodenet.store import Delta, Listing, Op, Removal, StoreEvent, listings
from nodenet.testing import Fault, FaultyTable, in_force
from tests.unit.compile.build import UDP, endpoint, pod, service, slice_
from tests.unit.reconcile.driven import LOCAL, Agent, fake_tables, some_objects, turns, within


class Threads:
    """Counts the runs that are sent to a worker thread. A run computes for `seconds` of the clock, and waits for a CPU
    for `stolen` more."""

    def __init__(self, agent: Agent) -> None:
        self.sent = 0
        self.seconds = self.stolen = 0.0
        self._agent = agent
        agent.loop._run_blocking = self.run_blocking
        work = agent.engine._work
        self._write, work.maps.write = work.maps.write, self.write  # type: ignore[method-assign]

    def write(self, *arguments: Any) -> None:
        self._agent.clock.now += self.seconds + self.stolen
        self._agent.clock.stolen += self.stolen
        self._write(*arguments)

    async def run_blocking(self, work: Callable[[], Any]) -> Any:
        self.sent += 1
        return work()

    async def sends(self, *events: StoreEvent) -> bool:
        """Feed these events. Returns True if a worker thread did the run."""
        before, runs = self.sent, self._agent.stats.runs
        self._agent.clock.advance(2)
        self._agent.engine.feed(*events)
        await within(self._agent.engine.in_force())
        assert self._agent.stats.runs == runs + 1
        return self.sent > before


def members(agent: Agent) -> Mapping[Any, Any]:
    """nn_member as the last run left it."""
    found = agent.runs[-1].members
    assert found is not None
    return found


async def test_nothing_is_written_before_every_list_is_in() -> None:
    tables = fake_tables()
    agent = Agent([], tables)
    agent.engine = Engine(LOCAL, tables, NoPrograms(), agent.clock, run_blocking=agent.run_blocking)
    listed = listings([service("s", "10.96.0.1")])
    agent.engine.feed(*listed[:-1])
    async with agent.running():
        await turns()
        assert agent.engine.missing == (kinds.ENDPOINT,)
        assert agent.engine.current == Compiled()
        assert not list(tables["nn_frontend"].items())
        agent.engine.feed(listed[-1])
        await within(agent.engine.in_force())
    assert len(list(tables["nn_frontend"].items())) == 1


async def test_triggers_are_coalesced_and_who_waits_finds_it_in_the_kernel() -> None:
    tables = fake_tables()
    agent = Agent(some_objects(), tables)
    async with agent.running():
        await within(agent.engine.in_force())
        runs = agent.stats.runs
        for number in range(2, 30):
            agent.feed(endpoint(number, "web", f"10.0.2.{number}"))
        await within(agent.engine.in_force())
        assert agent.stats.runs == runs + 1
        assert len(list(tables["nn_endpoint"].items())) == 29


async def test_a_restart_writes_nothing_that_was_right() -> None:
    tables = fake_tables()
    first = Agent(some_objects(), tables)
    async with first.running():
        await first.change(slice_("s", "10.0.1.9", "10.0.1.10"))
        await first.change(slice_("s", "10.0.1.10", "10.0.1.11"))
    second = Agent(first.objects, tables)
    async with second.running():
        await within(second.engine.in_force())
        assert second.stats.first_writes is not None
        assert second.stats.first_writes.total() == 0
        await second.change(service("t", "10.96.0.2"))
        assert second.stats.writes == {"nn_frontend": 1, "nn_service_addr": 1, "nn_revnat": 1}


async def test_members_are_reported_as_the_kernel_has_them() -> None:
    ports = [("", UDP, 53)]
    inner = fake_tables(nn_revnat=2)
    fault = Fault(1 << 20)
    agent = Agent(some_objects(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    async with agent.running():
        await within(agent.engine.in_force())
        await agent.change(service("dns", "10.96.0.2", ports=ports))
        await agent.change(slice_("dns", "10.0.1.1", "10.0.1.2", ports=ports))
        assert {backend.addr.packed[3] for backend in members(agent).values()} == {1, 2}
        # The Service that does not fit keeps its old state. The member that left the other one is still reported.
        await agent.change(service("more", "10.96.0.3", ports=ports), slice_("dns", "10.0.1.2", ports=ports))
        assert agent.stats.failing
        assert members(agent) == dict(inner["nn_member"].items())
        assert {backend.addr.packed[3] for backend in members(agent).values()} == {2}
        # A run that wrote something is tried again at once.
        await turns()
        # The second write, that of the new member, fails. It is unknown whether it was made.
        fault.at = fault.writes + 1
        await agent.change(slice_("dns", "10.0.1.3", ports=ports))
        assert "nn_member: set" in agent.stats.last_error
        assert agent.runs[-1].members is None


async def test_a_failed_write_is_named_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fault = Fault(0, times=2)
    inner = fake_tables()
    agent = Agent(some_objects(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    async with agent.running():
        await turns()
        assert (agent.stats.failing, agent.stats.errors) == (1, 2)
        assert "nn_" in agent.stats.last_error
        assert "out of memory" in agent.stats.last_error
        agent.clock.advance(0.1)
        await turns()
        assert agent.stats.failing == 1
        agent.clock.advance(0.2)
        await within(agent.engine.in_force())
        assert agent.stats.failing == 0
        assert agent.stats.last_sync == agent.clock.now
    assert "up to date again" in caplog.text
    assert len(list(inner["nn_frontend"].items())) == 2


async def test_a_full_service_map_does_not_hold_up_policy() -> None:
    tables = fake_tables(nn_frontend=1)
    agent = Agent(some_objects(), tables)
    async with agent.running():
        await within(agent.engine.in_force())
        assert agent.stats.service_revision < agent.engine.revision
        assert agent.stats.last_error.startswith("nn_frontend: set FrontendKey(")
        assert AddressKey(ip_address("10.0.1.9")) in dict(tables["nn_endpoint"].items())


async def test_an_error_in_the_compiler_is_reported_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(some_objects(), fake_tables())
    compiler = agent.engine._work._compiler
    whole, compiler.compile = compiler.compile, None  # type: ignore[method-assign,assignment]
    async with agent.running():
        await turns()
        assert agent.stats.errors == 1
        assert "TypeError" in agent.stats.last_error
        compiler.compile = whole  # type: ignore[method-assign]
        agent.clock.advance(1)
        await within(agent.engine.in_force())
    assert "Traceback" in caplog.text


async def test_a_resync_repairs_what_others_changed_and_counts_it() -> None:
    tables = fake_tables()
    agent = Agent(some_objects(), tables)
    async with agent.running():
        await within(agent.engine.in_force())
        right = in_force(tables)
        for key, _ in list(tables["nn_endpoint"].items()):
            tables["nn_endpoint"].delete(key)
        tables["nn_backend"].update(U32(1), next(iter(right["nn_backend"].values())))
        agent.clock.advance(59)
        await turns()
        assert agent.stats.drift == 0
        agent.clock.advance(2)
        await turns()
        assert agent.stats.drift == 2
        found = in_force(tables)
        assert {n: t for n, t in found.items() if n != "nn_state"} == {
            n: t for n, t in right.items() if n != "nn_state"
        }


async def test_no_write_is_made_after_it_was_stopped() -> None:
    release = asyncio.Event()
    made: list[bool] = []

    async def slowly(work: Callable[[], Any]) -> Any:
        await release.wait()
        made.append(True)
        return work()

    agent = Agent(some_objects(), fake_tables())
    agent.loop._run_blocking = slowly
    task = asyncio.create_task(agent.engine.run())
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
    """A waiting pod start ends the rest, but not after a long run: otherwise the agent would only compute."""
    agent = Agent(some_objects(), fake_tables())

    Threads(agent).seconds = took
    async with agent.running():
        await within(agent.engine.in_force())
        await turns()
        agent.feed(endpoint(2, "web", "10.0.2.2"))
        await turns()
        assert agent.stats.policy_revision < agent.engine.revision, "nobody waits: the loop rests"
        waiter = asyncio.create_task(agent.engine.in_force())
        await turns()
        assert waiter.done() is not waits
        agent.clock.advance(took)
        await within(waiter)


async def test_a_run_that_waited_for_a_cpu_does_not_rest_for_that() -> None:
    agent = Agent(some_objects(), fake_tables())
    threads = Threads(agent)
    threads.seconds, threads.stolen = 0.05, 0.5
    async with agent.running():
        await within(agent.engine.in_force())
        agent.feed(endpoint(2, "web", "10.0.2.2"))
        await turns()
        assert agent.stats.runs == 1
        agent.clock.advance(0.06)
        await turns()
        assert agent.stats.runs == 2
        assert agent.stats.last_duration == pytest.approx(0.55)


def changed(*backends: str) -> Delta:
    return Delta(Op.MODIFIED, slice_("s", *backends))


async def test_a_run_with_little_to_do_stays_in_the_event_loop() -> None:
    tables = fake_tables()
    agent = Agent([*some_objects(), pod("more", "10.0.1.8")], tables)
    threads = Threads(agent)
    async with agent.running():
        await within(agent.engine.in_force())
        assert threads.sent == 1, "the first run reads every table"
        assert not await threads.sends(changed("10.0.1.9", "10.0.1.10"))
        assert {backend.addr.packed[3] for _, backend in tables["nn_backend"].items()} == {9, 10}
        assert not await threads.sends(Delta(Op.ADDED, service("t", "10.96.0.2")))
        assert await threads.sends(Delta(Op.MODIFIED, Namespace("default", {"a": "b"}))), "it may concern every pod"
        assert await threads.sends(changed("10.0.1.9"), Delta(Op.DELETED, pod("more", "10.0.1.8")))
        many = [Delta(Op.ADDED, service(f"s{n}", f"10.96.1.{n}")) for n in range(SMALL_CHANGES + 1)]
        assert await threads.sends(*many)
        assert not await threads.sends(*(Delta(Op.DELETED, delta.obj) for delta in many[:SMALL_CHANGES]))
        assert await threads.sends(Listing(kinds.SERVICE, (service("s", "10.96.0.1"),))), "any of them may have changed"


async def test_after_a_run_that_took_long_the_next_one_is_in_a_thread() -> None:
    agent = Agent(some_objects(), fake_tables())
    threads = Threads(agent)
    async with agent.running():
        await within(agent.engine.in_force())
        threads.seconds = 0.01
        assert not await threads.sends(changed("10.0.1.1"))
        assert await threads.sends(changed("10.0.1.2"))
        threads.seconds = 0.0
        assert await threads.sends(changed("10.0.1.3"))
        assert not await threads.sends(changed("10.0.1.4"))


async def test_after_a_failed_run_the_next_one_is_in_a_thread() -> None:
    """It reads tables, or plans without knowing what changed."""
    agent = Agent(some_objects(), fake_tables(nn_frontend=2))
    threads = Threads(agent)
    async with agent.running():
        await within(agent.engine.in_force())
        assert not await threads.sends(Delta(Op.ADDED, service("t", "10.96.0.2")))
        assert agent.stats.failing == 1
        sent = threads.sent
        agent.clock.advance(0.5)
        await turns()
        assert (agent.stats.failing, threads.sent) == (2, sent + 1)


def _policy(name: str, *ports: int) -> NetworkPolicy:
    rules = (Rule(ports=tuple(PortRule(Protocol.TCP, port) for port in ports)),)
    return NetworkPolicy("default", name, Selector(), frozenset({Direction.INGRESS}), rules)


async def test_a_run_that_made_room_is_followed_by_the_next_one_at_once() -> None:
    tables = fake_tables(nn_policy=3)
    agent = Agent([*some_objects(), _policy("p", 1, 2, 3)], tables)
    async with agent.running():
        await within(agent.engine.in_force())
        # New entries are written before old ones are deleted. The clock stands still, so no retry is due.
        agent.feed(_policy("p", 4, 5, 6))
        await turns()
        assert agent.runs[-2].failed
        assert agent.stats.failing == 0
        assert {key.port for key, _ in tables["nn_policy"].items()} == {4, 5, 6}


async def test_a_map_that_stays_full_is_not_tried_all_the_time() -> None:
    agent = Agent([*some_objects(), _policy("p", 1, 2, 3)], fake_tables(nn_policy=2))
    async with agent.running():
        await turns(100)
        # What fits, and once more for the room that this may have made.
        assert len(agent.runs) == 2
        agent.clock.advance(LAST_RETRY_SECONDS)
        await turns(100)
        assert len(agent.runs) == 3


async def test_an_endpoint_waits_for_its_own_entries_alone() -> None:
    others = [pod(f"other{n}", f"10.0.2.{n}") for n in range(1, 5)]
    late = [pod("late", "10.0.3.1"), endpoint(2, "late", "10.0.3.1")]
    agent = Agent([*some_objects(), *others, *late], fake_tables(nn_ipcache=3))
    async with agent.running():
        await within(agent.engine.endpoint_in_force([ip_address("10.0.1.9")]))
        assert agent.stats.failing
        waiting = [
            asyncio.create_task(agent.engine.endpoint_in_force([ip_address("10.0.3.1")])),
            asyncio.create_task(agent.engine.in_force()),
        ]
        await turns()
        assert not any(task.done() for task in waiting)
        assert stale(agent.engine.current, agent.stats.stale) == [
            "pod default/late",
            "pod default/other3",
            "pod default/other4",
        ]
        for other in others:
            agent.engine.feed(Removal(kinds.POD, other.ref))
        await within(asyncio.gather(*waiting))
        assert agent.stats.stale == ()
