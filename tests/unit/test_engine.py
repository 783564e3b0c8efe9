"""The engine publishes one value per run: whoever reads at any moment has parts that belong together."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodenet import engine as module
from nodenet import kinds
from nodenet.compile import LocalNode, Names, compile_once
from nodenet.engine import Compiled, Engine
from nodenet.flow.names import NameTableBuilder
from nodenet.flow.types import NameTable
from nodenet.kinds import KINDS
from nodenet.model import Node
from nodenet.reconcile.apply import ApplyError
from nodenet.reconcile.grace import NoPrograms
from nodenet.store import Delta, Op, Removal, listings
from nodenet.testing import Fault, FaultyTable, fake_tables
from tests.unit.compile.build import TCP, endpoint, pod, service, slice_
from tests.unit.compile.test_changes import LOCAL, STEPS, events

SERVICES = st.builds(
    lambda name, ip, port: service(name, f"10.96.0.{ip}", ports=[("", TCP, port)]),
    st.sampled_from("st"),
    st.integers(1, 3),
    st.integers(80, 82),
)
SLICES = st.builds(lambda name, ip: slice_(name, f"10.0.0.{ip}"), st.sampled_from("st"), st.integers(1, 3))
GONE = st.builds(lambda name: (kinds.SERVICE, service(name).ref), st.sampled_from("st"))


def plain(tables: Any, names: Names, flow_names: NameTable) -> list[Any]:
    """What can be compared: everything but names of the past."""
    return [
        {name: dict(table.items()) for name, table in tables.items()},
        [dict(part.items()) for part in (names.services, names.rules, names.identities, names.regions)],
        names.isolated_by,
        [dict(part.items()) for part in (flow_names.services, flow_names.frontends, flow_names.rules)],
        [dict(part.items()) for part in (flow_names.identities, flow_names.isolated_by)],
    ]


def found_in(value: Compiled) -> list[Any]:
    return plain(value.desired.tables, value.names, value.flow_names)


def expected_of(value: Compiled) -> list[Any]:
    """All parts, made from the value's Snapshot alone."""
    desired, names = compile_once(value.snapshot, LOCAL)
    flow_names = NameTableBuilder().build(value.snapshot, names, LOCAL, desired.tables["nn_ipcache"], now=0)
    return plain(desired.tables, names, flow_names)


class Reader:
    """Checks that each published value is one compilation, and that it never changes afterwards."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.last = engine.current
        assert self.last == Compiled()
        # Every value that was seen after that, with its parts at that moment.
        self.seen: list[tuple[Compiled, list[Any]]] = []

    def look(self) -> None:
        value = self.engine.current
        if value is self.last:
            return
        parts = found_in(value)
        assert parts == expected_of(value)
        assert value.snapshot.revision >= self.last.snapshot.revision
        self.last = value
        self.seen.append((value, parts))

    def check_again(self) -> None:
        for value, parts in self.seen:
            assert found_in(value) == parts

    @contextmanager
    def at_every_line(self) -> Iterator[None]:
        """Look before each line of engine.py: a reader in another thread may come between any two of them."""

        def trace(frame: FrameType, _event: str, _argument: object) -> Any:
            if frame.f_code.co_filename != module.__file__:
                return None
            self.look()
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(STEPS.map(lambda steps: steps[:1]), st.lists(SERVICES | SLICES | GONE, max_size=3)), max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_a_reader_at_any_moment_has_one_compilation(
    steps: list[tuple[list[list[Any]], list[Any]]], whole: list[bool]
) -> None:
    """Also where writes fail: what is published is what was compiled."""
    fault = Fault(1 << 30)
    engine = Engine(LOCAL, {name: FaultyTable(table, fault) for name, table in fake_tables().items()}, NoPrograms())
    engine.feed(*listings([]))
    reader = Reader(engine)
    for (others, services), is_whole in zip(steps, whole, strict=False):
        engine.feed(*events([*(change for changes in others for change in changes), *services]))
        fault.at = 1 << 30 if is_whole else fault.writes
        before = engine.current.names.services
        with reader.at_every_line():
            try:
                engine.run_once()
            except ApplyError:
                assert not is_whole
        reader.look()
        assert engine.current.snapshot.revision == engine.revision
        assert engine.current.services_before is before
    reader.check_again()
    assert len(reader.seen) == len(steps)


async def test_readers_in_other_threads_have_one_compilation_while_changes_never_end() -> None:
    engine = Engine(LOCAL, fake_tables(), NoPrograms())
    engine.feed(*listings([Node("node2", (), ())]))
    over = threading.Event()
    # By the identity of the parts: reading must cost little, or nobody reads in the middle.
    seen: dict[tuple[int, ...], Compiled] = {}

    def read() -> None:
        while not over.is_set():
            value = engine.current
            seen.setdefault(tuple(map(id, (value.snapshot, value.desired, value.names, value.flow_names))), value)

    def wait_for_readers() -> None:
        while not any(value is engine.current for value in list(seen.values())):
            time.sleep(0)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    running = asyncio.create_task(engine.run())
    try:
        async with asyncio.timeout(60):
            for turn in range(30):
                number = 1 + turn % 5
                engine.feed(
                    Delta(Op.MODIFIED, pod(f"p{number}", f"10.0.0.{number}", labels={"turn": str(turn)})),
                    Delta(Op.MODIFIED, endpoint(number, f"p{number}", f"10.0.0.{number}")),
                    Delta(Op.MODIFIED, service(f"s{number}", f"10.96.0.{turn}")),
                    Delta(Op.MODIFIED, slice_(f"s{number}", f"10.0.0.{number}")),
                    Removal(kinds.SERVICE, service(f"s{1 + (turn + 2) % 5}").ref),
                )
                await engine.in_force()
                # On a busy machine a reader may not have run yet.
                await asyncio.to_thread(wait_for_readers)
    finally:
        sys.setswitchinterval(before)
        over.set()
        for thread in threads:
            thread.join()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(seen) > 10
    for value in seen.values():
        assert found_in(value) == expected_of(value) or value == Compiled()


def test_a_run_before_every_list_says_what_is_missing() -> None:
    engine = Engine(LocalNode("node1"), fake_tables(), NoPrograms())
    engine.feed(*(event for event in listings([]) if event.kind is not kinds.NODE))
    assert engine.missing == (kinds.NODE,)
    with pytest.raises(RuntimeError, match="no list yet of: Node"):
        engine.run_once()


def test_a_service_that_has_just_gone_keeps_its_name_for_one_run() -> None:
    engine = Engine(LOCAL, fake_tables(), NoPrograms())
    web = service("web", "10.96.0.1")
    engine.feed(*listings([web]))
    engine.run_once()
    (number,) = engine.current.names.services
    engine.feed(Removal(kinds.SERVICE, web.ref))
    engine.run_once()
    assert not engine.current.names.services
    assert engine.current.service_name(number) == "Service default/web"
    engine.run_once()
    assert engine.current.service_name(number) == f"Service number {number}"


async def test_a_change_wakes_those_who_wait_for_its_kind() -> None:
    engine = Engine(LOCAL, fake_tables(), NoPrograms())
    waits = {kind: engine.next_change(kind) for kind in KINDS}
    node = Node("node2", (), ())
    assert engine.feed(Delta(Op.ADDED, node), Delta(Op.ADDED, service("s", "10.96.0.1")))
    assert {kind for kind, event in waits.items() if event.is_set()} == {kinds.NODE, kinds.SERVICE}
    again = engine.next_change(kinds.NODE)
    assert not engine.feed(Delta(Op.MODIFIED, node))
    assert not again.is_set()
