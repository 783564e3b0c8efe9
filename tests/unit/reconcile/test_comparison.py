"""The regular comparison finds all differences and reports no false ones, in slices between which changes are
written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.abi import U32, AddressKey, AddressPort
from nodenet.reconcile.apply import ApplyError
from nodenet.reconcile.comparison import SLICE_ENTRIES, Comparison
from nodenet.reconcile.plan import Write
from nodenet.testing import Crashed, FakeTable, Fault, FaultyTable, in_force
from tests.unit.compile.build import endpoint, pod, service, slice_
from tests.unit.reconcile.driven import Agent, fake_tables, some_objects, turns, within

TABLE = "nn_backend"
numbers = st.integers(0, 12)
entries = st.dictionaries(numbers, numbers, max_size=13)
# None: a slice of the comparison. (key, value): our own write, value None deletes.
steps = st.lists(st.none() | st.tuples(numbers, st.none() | numbers), max_size=40)


class Lazy(FakeTable):
    """Read entry by entry, as the kernel's maps are: a write is visible to a reader that has not come so far."""

    def items(self) -> Iterator[tuple[Any, Any]]:
        seen: set[bytes] = set()
        while left := [packed for packed in sorted(self._entries) if packed not in seen]:
            seen.add(left[0])
            yield self._spec.key.unpack(left[0]), self._spec.value.unpack(self._entries[left[0]])


def value(number: int) -> AddressPort:
    return AddressPort(ip_address("10.0.0.1"), 1000 + number, 6)


def records(plain: dict[int, int]) -> dict[Any, Any]:
    return {U32(key): value(number) for key, number in plain.items()}


def finish(comparison: Comparison, held: dict[Any, Any], size: int) -> bool:
    """Whether the rest of the walk finds a difference."""
    while comparison.under_way:
        if comparison.step({TABLE: held}, size):
            return True
    return False


@given(kernel=entries, held=entries, size=st.integers(1, 5), kind=st.sampled_from([FakeTable, Lazy]))
def test_every_difference_is_found_and_none_is_made_up(
    kernel: dict[int, int], held: dict[int, int], size: int, kind: type[FakeTable]
) -> None:
    comparison = Comparison({TABLE: kind(TABLE, records(kernel))})
    comparison.begin([TABLE])
    assert finish(comparison, records(held), size) is (kernel != held)
    assert not comparison.under_way


@given(
    start=entries,
    plan=steps,
    size=st.integers(1, 4),
    kind=st.sampled_from([FakeTable, Lazy]),
    foreign=st.none() | numbers,
)
def test_writes_between_the_slices_neither_hide_nor_feign_a_difference(
    start: dict[int, int],
    plan: list[tuple[int, int | None] | None],
    size: int,
    kind: type[FakeTable],
    foreign: int | None,
) -> None:
    """A difference in a key that we do not write is found; without one nothing is reported."""
    table, held = kind(TABLE, records(start)), records(start)
    if foreign is not None:
        table.update(U32(foreign), value(99))
    comparison, found = Comparison({TABLE: table}), False
    comparison.begin([TABLE])
    for step in plan:
        if step is None:
            found = found or comparison.step({TABLE: held}, size) is not None
            continue
        key, number = step
        if key == foreign:
            continue
        write = Write(TABLE, U32(key), None if number is None else value(number))
        comparison.wrote([write])
        # No mapping that the walk has seen is changed in place.
        held = {k: v for k, v in held.items() if k != write.key}
        if write.is_delete:
            table.delete(write.key)
        else:
            table.update(write.key, write.value)
            held[write.key] = write.value
    assert (found or finish(comparison, held, size)) is (foreign is not None)


def test_a_table_that_cannot_be_read_is_named_and_leaves_the_walk() -> None:
    class Broken(FakeTable):
        def items(self) -> Iterable[tuple[Any, Any]]:
            raise OSError(5, "no answer")

    comparison = Comparison({TABLE: Broken(TABLE), "nn_revnat": FakeTable("nn_revnat")})
    comparison.begin([TABLE, "nn_revnat"])
    with pytest.raises(ApplyError, match="nn_backend: read") as raised:
        comparison.step({TABLE: {}, "nn_revnat": {}})
    assert raised.value.table == TABLE
    assert comparison.under_way
    assert comparison.step({TABLE: {}, "nn_revnat": {}}) is None
    assert not comparison.under_way


# In the loop

ENDPOINTS = 3 * SLICE_ENTRIES


def many() -> list[object]:
    """So many endpoints that their table takes several slices."""
    numbers = range(2, ENDPOINTS)
    return [*some_objects(), *(endpoint(n, "web", f"10.1.{n // 250}.{n % 250}") for n in numbers)]


async def slices(agent: Agent, until: Callable[[], bool]) -> int:
    """Let time pass until a condition is true, for at most 50 slices. Returns the number of slices."""
    for turn in range(50):
        if until():
            return turn
        agent.clock.advance(0.02)
        await turns()
    raise AssertionError("it did not come true")


async def begun(agent: Agent) -> None:
    """Everything is written, and a comparison has done its first slice."""
    await within(agent.engine.in_force())
    await turns()
    agent.clock.advance(61)
    await turns()
    assert agent.comparing


def change_first(table: FakeTable) -> None:
    key, entry = next(iter(table.items()))
    table.update(key, entry._replace(ifindex=entry.ifindex + 1))


def change_last(table: FakeTable) -> None:
    key, entry = list(table.items())[-1]
    table.update(key, entry._replace(ifindex=entry.ifindex + 1))


def lose_one(table: FakeTable) -> None:
    table.delete(list(table.items())[SLICE_ENTRIES + 7][0])


def add_one(table: FakeTable) -> None:
    table.update(AddressKey(ip_address("10.77.0.1")), next(iter(table.items()))[1])


@pytest.mark.parametrize("harm", [change_first, change_last, lose_one, add_one])
async def test_the_loop_repairs_what_differs_wherever_it_is(harm: Callable[[FakeTable], None]) -> None:
    tables = fake_tables()
    agent = Agent(many(), tables)
    async with agent.running():
        await within(agent.engine.in_force())
        right = in_force(tables)["nn_endpoint"]
        harm(tables["nn_endpoint"])
        assert in_force(tables)["nn_endpoint"] != right
        agent.clock.advance(61)
        await slices(agent, lambda: agent.stats.drift > 0)
        assert agent.stats.drift == 1
        assert in_force(tables)["nn_endpoint"] == right
        # The next comparison finds nothing more.
        agent.clock.advance(61)
        await slices(agent, lambda: agent.stats.compared == 1)
        assert agent.stats.drift == 1


async def test_a_comparison_takes_several_slices_and_writes_nothing_where_nothing_differs() -> None:
    agent = Agent(many(), fake_tables())
    async with agent.running():
        await begun(agent)
        writes, synced = agent.stats.writes.total(), agent.stats.last_sync
        assert await slices(agent, lambda: agent.stats.compared == 1) >= 2 * ENDPOINTS // SLICE_ENTRIES - 1
        assert (agent.stats.drift, agent.stats.writes.total()) == (0, writes)
        assert agent.stats.last_sync > synced, "the maps are known to be right"


async def test_a_change_is_written_before_the_next_slice() -> None:
    tables = fake_tables()
    agent = Agent(many(), tables)
    async with agent.running():
        await begun(agent)
        while agent.comparing:
            number = agent.stats.runs
            await agent.change(endpoint(number, "web", f"10.9.0.{number}"))
            assert AddressKey(ip_address(f"10.9.0.{number}")) in dict(tables["nn_endpoint"].items())
            agent.clock.advance(0.02)
            await turns()
        assert (agent.stats.compared, agent.stats.drift) == (1, 0)


async def test_changes_without_end_do_not_keep_the_comparison_from_its_end() -> None:
    agent = Agent(many(), fake_tables())

    async def run_and_trigger(work: Callable[[], Any]) -> Any:
        asyncio.get_running_loop().call_soon(agent.loop.trigger)
        return work()

    agent.loop._run_blocking = run_and_trigger
    async with agent.running():
        await within(agent.engine.in_force())
        # The clock jumps in the middle of a run, which therefore rests for the longest time.
        agent.clock.advance(61)
        await turns()
        agent.clock.advance(1)
        runs = agent.stats.runs
        assert await slices(agent, lambda: agent.stats.compared == 1) > 3
        assert agent.stats.runs > runs + 3
        assert agent.stats.drift == 0


async def test_a_table_that_fails_in_the_middle_is_read_again_and_what_differs_is_still_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(FakeTable):
        failures = 0

        def items(self) -> Iterator[tuple[Any, Any]]:
            for place, entry in enumerate(super().items()):
                if place == SLICE_ENTRIES and self.failures:
                    self.failures -= 1
                    raise OSError(12, "out of memory (on purpose)")
                yield entry

    table = Failing("nn_endpoint")
    tables = {**fake_tables(), "nn_endpoint": table}
    agent = Agent(many(), tables)
    async with agent.running():
        await begun(agent)
        right = in_force(tables)["nn_endpoint"]
        change_last(table)
        # The slice fails, and so does the first whole reading.
        table.failures = 2
        await slices(agent, lambda: agent.stats.failing == 1)
        assert "nn_endpoint: read" in agent.stats.last_error
        agent.clock.advance(1)
        await turns()
        assert (agent.stats.failing, agent.stats.drift) == (0, 1)
        assert in_force(tables)["nn_endpoint"] == right
    assert "resync: nn_endpoint: read" in caplog.text


async def test_a_write_that_fails_during_a_comparison_is_no_drift() -> None:
    fault = Fault(1 << 30)
    inner = fake_tables()
    agent = Agent(many(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    async with agent.running():
        await begun(agent)
        # The write is made, but reported as failed.
        fault.at, fault.made = fault.writes, True
        agent.feed(endpoint(9000, "web", "10.9.9.9"))
        await slices(agent, lambda: agent.stats.errors == 1)
        agent.clock.advance(1)
        await slices(agent, lambda: agent.stats.compared == 1)
        assert (agent.stats.failing, agent.stats.drift) == (0, 0)
        assert AddressKey(ip_address("10.9.9.9")) in dict(inner["nn_endpoint"].items())


@pytest.mark.parametrize("made", [False, True])
async def test_a_crash_during_a_comparison_leaves_what_the_next_start_puts_right(made: bool) -> None:
    fault = Fault(1 << 30, crash=True, made=made)
    inner = fake_tables()
    first = Agent(many(), {name: FaultyTable(table, fault) for name, table in inner.items()})
    running = asyncio.create_task(first.engine.run())
    await begun(first)
    fault.at = fault.writes + 1
    first.feed(pod("more", "10.9.9.8"), slice_("s", "10.0.1.9", "10.9.9.8"))
    with pytest.raises(Crashed):
        await within(running)
    second = Agent(first.objects, inner)
    async with second.running():
        await within(second.engine.in_force())
        second.clock.advance(61)
        await slices(second, lambda: second.stats.compared == 1)
        assert second.stats.drift == 0
        assert {backend.addr.packed[3] for _, backend in inner["nn_backend"].items()} == {9, 8}


async def test_slices_do_not_make_a_failed_run_try_again_sooner() -> None:
    tables = fake_tables(nn_frontend=2)
    agent = Agent(many(), tables)
    async with agent.running():
        await within(agent.engine.in_force())
        await agent.change(service("t", "10.96.0.2"))
        assert agent.stats.failing
        for _ in range(10):
            agent.clock.advance(31)
            await turns()
        # This wakes the loop for a try; the next one is due in 30 s.
        agent.engine._work.maps.begin_comparison()
        agent.clock.advance(31)
        await turns()
        assert agent.comparing
        compared, runs = agent.stats.compared, agent.stats.runs
        while agent.comparing:
            assert agent.stats.runs == runs
            agent.clock.advance(0.02)
            await turns()
        assert agent.stats.compared == compared + 1
        assert (agent.stats.drift, agent.stats.failing > 0) == (0, True)


async def test_a_stop_waits_for_the_slice() -> None:
    agent = Agent(many(), fake_tables())
    task = asyncio.create_task(agent.engine.run())
    await begun(agent)
    release, done = asyncio.Event(), []

    async def slowly(work: Callable[[], Any]) -> Any:
        await release.wait()
        done.append(True)
        return work()

    agent.loop._run_blocking = slowly
    agent.clock.advance(0.02)
    await turns()
    task.cancel()
    await turns()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_a_full_map_does_not_make_what_is_held_grow_with_every_try() -> None:
    """A failed run leaves a dict behind, not a draft over the draft of the run before."""
    agent = Agent(some_objects(), fake_tables(nn_frontend=2))
    async with agent.running():
        await within(agent.engine.in_force())
        for port in range(3):
            await agent.change(service("t", f"10.96.0.{2 + port}"))
            assert agent.stats.failing
        assert type(agent.engine.held["nn_frontend"]) is dict
