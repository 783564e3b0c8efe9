"""Blocks in turn: the order of a round, and what direct's two blocks make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nodenet.errors import CannotRunError
from perf import blocks
from perf.blocks import Found, Sizes, Target
from perf.load import Block, LoadMaker
from perf.modes import Mode
from perf.workloads import LeftOut


@dataclass(frozen=True)
class StandIn:
    name: str
    notes: list[str] = field(default_factory=list, hash=False, compare=False)

    @property
    def client(self) -> str:
        return self.name

    def flush(self) -> None:
        """Nothing to forget."""


class Recorder:
    """A fake load generator. It records its calls, and its figures are the number of the call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def block(self, place: str, workload: str, address: str, port: int, count: int, warmup: int) -> Block:
        self.calls.append(f"{place}:{address}")
        return Block([float(len(self.calls))] * count, count, 1)


def target(name: str, metric: str = "latency", address: str = "a") -> Target:
    return Target(cast("Mode", StandIn(name)), metric, address, 80)


def taken(rounds: int) -> tuple[list[str], blocks.Taken]:
    targets = [target("direct"), target("x"), target("y"), target("direct", "latency_repeat")]
    maker = Recorder()
    sizes = Sizes(1, rounds, 3, 1)
    return maker.calls, blocks.take_turns(cast("LoadMaker", maker), sizes, targets, "crr", lambda words: None)


def test_every_second_round_runs_backwards() -> None:
    calls, _ = taken(2)
    assert [call.partition(":")[0] for call in calls] == ["direct", "x", "y", "direct", "direct", "y", "x", "direct"]


def test_a_drift_meets_all_alike() -> None:
    """Each call takes longer than the one before. Over two rounds this affects all targets equally."""
    _, found = taken(2)
    assert {sum(one.medians) for one in found.values()} == {9}


def test_the_limit_is_the_middle_of_direct_before_and_after() -> None:
    _, found = taken(2)
    assert blocks.limit(found) == (2.5, 6.5)


def test_direct_again_is_compared_with_direct() -> None:
    _, found = taken(1)
    again = next(one for one in found if one.metric == "latency_repeat")
    row = blocks.result(again, found, "crr", 1)
    assert (row.blocks, row.baseline) == ((4,), (1,))
    other = blocks.result(next(one for one in found if one.mode.name == "x"), found, "crr", 1)
    assert other.baseline == (2.5,)
    assert other.extra == {"switches": [13, 3, 1]}


def test_a_failed_block_is_measured_again_and_noted() -> None:
    notes: list[str] = []

    class Failing(Recorder):
        def block(self, *given: Any) -> Block:
            found = super().block(*given)
            if len(self.calls) in failing:
                raise CannotRunError("connect: Connection timed out")
            return found

    def run() -> blocks.Taken:
        names = (("direct", "latency"), ("x", "latency"), ("direct", "latency_repeat"))
        targets = [Target(cast("Mode", StandIn(name, notes)), metric, "a", 80) for name, metric in names]
        return blocks.take_turns(cast("LoadMaker", Failing()), Sizes(1, 1, 3, 1), targets, "crr", lambda words: None)

    failing = {2, 3}
    found = run()
    assert [one.medians for one in found.values()] == [(1,), (4,), (5,)]
    assert notes == ["x: a block was measured again: connect: Connection timed out"] * 2
    failing = {2, 3, 4}
    with pytest.raises(CannotRunError, match="timed out"):
        run()


def test_rates_are_of_all_connections_of_a_block() -> None:
    assert Found([[10.0, 30.0]]).rates() == (50_000,)


def test_what_failed_is_not_tried_again_nor_with_more() -> None:
    said: list[str] = []
    left_out = LeftOut(said.append)
    for _ in range(2):
        left_out.add("nftables", "program", 10_000, "not finished after 60 s")
    assert len(said) == len(left_out.entries) == 1
    answers: dict[Any, bool] = {
        (mode, services): left_out.names(mode, "program", services)
        for mode in ("nftables", "ebpf")
        for services in (1000, 10_000, 50_000)
    }
    assert [key for key, value in answers.items() if value] == [("nftables", 10_000), ("nftables", 50_000)]


def test_a_hopeless_load_is_known_beforehand() -> None:
    """nft's growth, squared: 0.2 s and 18 s make minutes of 50,000; quick modes and first sizes are simply tried."""
    left_out = LeftOut(lambda words: None)
    assert left_out.expected("nftables", 50_000) == 0
    left_out.seconds = {"nftables": {1: 0.003, 1000: 0.2, 10_000: 18.0}, "ebpf": {1: 0.001, 1000: 0.05, 10_000: 0.9}}
    assert 300 < left_out.expected("nftables", 50_000) < 500
    assert left_out.expected("nftables", 10_000) == 0
    assert left_out.expected("ebpf", 50_000) == 0
