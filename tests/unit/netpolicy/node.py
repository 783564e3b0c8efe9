"""A node in memory: maps, a model of the programs that read them at every moment, and agents that write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nodenet.abi import U32, AddressKey, Record, State
from nodenet.model import Direction
from nodenet.reconcile.apply import Table
from nodenet.reconcile.maps import TABLES, Maps, Outcome
from nodenet.reconcile.plan import SERVICE_TABLES
from nodenet.testing import FakeTable, Fault, FaultyTable
from tests.unit.netpolicy.datapath import Datapath, Packet

Tables = Mapping[str, Mapping[Record, Record]]
Question = tuple[Direction, Packet]
Answers = dict[Question, bool]


class SlowGrace:
    """A grace period that lasts until somebody waits for it."""

    def __init__(self) -> None:
        self.then: list[Callable[[], None]] = []
        self.over: Callable[[], None] = lambda: None
        self.waits = 0

    def begin(self, then: Callable[[], None]) -> None:
        self.then.append(then)

    def wait(self) -> None:
        self.waits += 1
        self.over()
        for then in self.then:
            then()
        self.then.clear()


class _Watched:
    """A table whose writes the programs see."""

    def __init__(self, inner: FakeTable, node: Node) -> None:
        self._inner, self._node = inner, node

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self._inner.items()

    def update(self, key: Any, value: Any) -> None:
        self._inner.update(key, value)
        self._node.written(self._inner.name, key, value)

    def update_many(self, entries: Sequence[tuple[Any, Any]]) -> int:
        return 0

    def delete(self, key: Any) -> None:
        had = key in dict(self._inner.items())
        self._inner.delete(key)
        if had:
            self._node.written(self._inner.name, key, None)


class Node:
    """Its maps outlive its agents. After every single write, programs that read the generation now, and programs that
    read it before and still run, get exactly the answers of the state that was in force when they read it."""

    def __init__(self, asked: list[Question], generation: int = 0) -> None:
        self.asked = asked
        self.inner = {name: FakeTable(name) for name in TABLES}
        self.inner["nn_state"].update(U32(0), State(generation, generation))
        self.datapath = Datapath(generation=generation)
        self.switches = 0
        self.writes = 0
        # Generation -> the answers to programs that read it and may still run.
        self.running: dict[int, Answers] = {}
        self.next: Answers = {}
        self.start()
        self.running = {generation: {}}

    def start(self) -> None:
        """A new agent. The programs that run go on running."""
        self.grace = SlowGrace()
        self.grace.over = self._programs_end
        self.fault = Fault(1 << 30)
        tables: dict[str, Table] = {
            name: FaultyTable(_Watched(table, self), self.fault) for name, table in self.inner.items()
        }
        self.maps = Maps(tables, self.grace)

    def _programs_end(self) -> None:
        now = self.datapath.generation
        self.running = {now: self.running[now]}

    def change(self, wanted: Tables, final: Answers) -> Outcome:
        """Bring the maps to `wanted`, whose answers are `final`. Errors are in the outcome."""
        self.next = final
        outcome = Outcome(0)
        self.maps.read(outcome)
        services: Tables = {name: {} for name in SERVICE_TABLES}
        self.maps.write({**services, **wanted}, outcome)
        return outcome

    def written(self, table: str, key: Any, value: Any) -> None:
        self.writes += 1
        if table == "nn_state":
            self.datapath.generation = value.generation
            self.running[value.generation] = self.next
            self.switches += 1
        elif value is None:
            self.datapath.delete(table, key)
        else:
            self.datapath.update(table, key, value)
        self.check((table, key, value))

    def check(self, what: object = "") -> None:
        for generation, answers in self.running.items():
            wrong = [q for q, answer in answers.items() if self.datapath.allows(*q, generation) is not answer]
            assert not wrong, (what, generation, wrong)

    def in_force(self) -> Answers:
        return self.running[self.datapath.generation]


def answers_of(tables: Tables, asked: Iterable[Question]) -> Answers:
    """The answers of a state, for the pods that it has."""
    datapath = Datapath()
    datapath.load(tables)
    pods = {key.addr for key in tables["nn_endpoint"] if isinstance(key, AddressKey)}
    return {
        (direction, packet): datapath.allows(direction, packet)
        for direction, packet in asked
        if (packet.source if direction is Direction.EGRESS else packet.destination) in pods
    }
